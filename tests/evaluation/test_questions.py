"""Questions and gold answers from records of every kind that is evaluated."""

from pathlib import Path
from typing import Any

import pytest

from tests.smallest_recipe import write_json
from twintune.converters.conversation import Message
from twintune.errors import UserError
from twintune.evaluation.questions import read_questions
from twintune.recipe import load_recipe

LOGIC = {
    "problem": "甲比乙高。",
    "questions": [
        {"question": "谁高？", "options": ["甲", "乙"], "answer": "A"},
        {"question": "谁矮？", "options": ["甲", "乙"], "answer": "B"},
    ],
    "id": "r1",
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name_or_path: ./m}\ndata: {train: ./train.json}\nevaluate: {test: ./test.json}\n")
    return path


@pytest.mark.parametrize(
    ("record", "question", "gold", "kind"),
    [
        ({"question": "2 + 3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}, "2 + 3?", "5", "number"),
        (
            {"grade": 1, "input": "几页？", "golden": "2/6", "num_digits": 1},
            "几页？",
            "1/3",
            "number",
        ),
        ({"id": "1", "original_text": "几米？", "equation": "x=1/2", "ans": "((1)/(2))"}, "几米？", "0.5", "number"),
        ({"instruction": "题目：几颗？", "input": "", "output": "\n答案是 12 颗。"}, "题目：几颗？", "12", "number"),
        ({"instruction": "Which?", "input": "A. x B. y", "output": "B"}, "Which?\nA. x B. y", "B", "choice"),
        ({"prompt": "Which?", "completion": "Answer: C"}, "Which?", "C", "choice"),
    ],
)
def test_the_gold_answer_comes_from_the_record(
    recipe_file: Path, record: dict[str, Any], question: str, gold: str, kind: str
) -> None:
    write_json(recipe_file.parent / "test.json", [record])
    (found,) = read_questions(load_recipe(recipe_file)).questions
    assert (found.messages[-1].text, found.gold, found.kind) == (question, gold, kind)
    assert (found.file, found.row) == ("test.json", 1)


def test_a_contest_problem_asks_each_of_its_questions(recipe_file: Path) -> None:
    write_json(recipe_file.parent / "test.json", [LOGIC])
    found = read_questions(load_recipe(recipe_file)).questions
    assert [(each.row, each.gold, each.kind) for each in found] == [(1, "A", "choice"), (1, "B", "choice")]


def test_earlier_turns_and_the_system_prompt_are_shown(recipe_file: Path) -> None:
    turns = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?"), ("assistant", "4")]
    messages = [{"role": role, "content": content} for role, content in turns]
    write_json(recipe_file.parent / "test.json", [{"messages": messages}])
    (found,) = read_questions(load_recipe(recipe_file)).questions
    assert [message.text for message in found.messages] == ["Be brief.", "1 + 1?", "2", "2 + 2?"]
    assert found.messages[0] == Message("system", "Be brief.")
    assert found.gold == "4"


def test_limit_takes_the_first_questions_of_all_files(recipe_file: Path) -> None:
    for name in ("a", "b"):
        write_json(
            recipe_file.parent / f"{name}.json", [{"question": f"{name}?", "answer": f"#### {n}"} for n in (1, 2)]
        )
    recipe = load_recipe(recipe_file, ["evaluate.test=[a.json, b.json]", "evaluate.limit=3"])
    found = read_questions(recipe)
    assert [(each.file, each.gold) for each in found.questions] == [("a.json", "1"), ("a.json", "2"), ("b.json", "1")]
    shorter = read_questions(load_recipe(recipe_file, ["evaluate.test=[a.json, b.json]", "evaluate.limit=2"]))
    assert shorter.sha256 != found.sha256


def test_every_bad_record_is_told_at_once(recipe_file: Path) -> None:
    (recipe_file.parent / "test.json").write_text(
        '{"question": "a", "answer": "none"}\n{"question": "a"}\nrubbish\n{"question": "a", "answer": "#### 5-7"}\n'
    )
    with pytest.raises(UserError) as caught:
        read_questions(load_recipe(recipe_file))
    rows = [message.split(": row ")[1][0] for message in caught.value.messages]
    assert sorted(rows) == ["1", "2", "3", "4"]


def test_validation_records_that_prepare_rejects_are_told_and_left_out(recipe_file: Path) -> None:
    records = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(40)]
    write_json(recipe_file.parent / "train.json", [*records, {"question": "", "answer": "#### 1"}])
    found = read_questions(load_recipe(recipe_file, ["evaluate.test=[]", "data.val_size=0.999"]))
    assert len(found.questions) == 40
    assert len(found.left_out) == 1
    assert "row 41: question must" in found.left_out[0]
