from pathlib import Path

import pytest

from twintune.converters.contest_formats import ContestQuestion
from twintune.errors import UserError
from twintune.reasoning.questions import Prompt, read_questions, reasoning_towards

SAMPLE = Path(__file__).parents[1] / "data" / "logic_contest.jsonl"
QUESTION = ContestQuestion("规则 {{ 1 }}", "哪个?", {"A": "甲", "B": "乙"}, "B", "")


@pytest.mark.parametrize(
    "ending",
    [
        "答案是:B",
        "答案是：B",
        "答案是:Ｂ。",
        "**答案是：B**",
        "**答案**是:**B**",
        "### 答案:B",
        "答案: (B)",
        "答案为【B】\n",
        "因此,最终答案是:B",
        "答案是:B. 乙",
        "故选B",
    ],
)
def test_a_line_that_is_the_gold_answer_leaves_the_reasoning(ending: str) -> None:
    assert reasoning_towards(f"\n先看甲。\n再看乙。\n\n{ending}", "B") == "先看甲。\n再看乙。"


def test_a_line_that_is_more_than_the_answer_stays() -> None:
    assert reasoning_towards("先看甲。\n再看乙，因此正确的答案是B。", "B") == "先看甲。\n再看乙，因此正确的答案是B。"
    assert reasoning_towards("不是甲，所以答案是:B", "B") == "不是甲，所以答案是:B"


def test_the_last_line_counts() -> None:
    assert (
        reasoning_towards("若选A则矛盾。\n答案是:A,不对,重新想。\n答案是:B", "B")
        == "若选A则矛盾。\n答案是:A,不对,重新想。"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "先看甲。\n答案是:A",
        "先看甲。\n答案是:B\n不,答案是:A",
        "答案是:B\n\n因为甲不对。",  # the answer comes first
        "答案是:B",  # no reasoning
        "先看甲。\n答案是:Both",
        "先看甲。\n所以排除(B)",
        "先看甲。\n答案是:A和B",
        "先看甲。",
        "",
    ],
)
def test_any_other_answer_gives_none(answer: str) -> None:
    assert reasoning_towards(answer, "B") is None


def test_the_prompt_shows_the_question_and_not_its_answer() -> None:
    text = Prompt(None).render(QUESTION)
    assert text.endswith("题目:\n规则 {{ 1 }}\n\n问题:\n哪个?\nA. 甲\nB. 乙\n")
    assert "答案是:X" in text
    assert text == Prompt(None).render(QUESTION._replace(answer="A", reasoning="因为"))


def test_a_prompt_of_ones_own_may_show_the_answer() -> None:
    prompt = Prompt("{{ problem }} {{ question }} {{ options['B'] }} {{ answer }}")
    assert prompt.render(QUESTION) == "规则 {{ 1 }} 哪个? 乙 B"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ problem", "must be a jinja text, got: unexpected end of template"),
        ("{% if %}", "must be a jinja text, got: Expected an expression"),
        ("{{ probelm }}", "of problem, question, options and answer, got: 'probelm' is undefined"),
        ("{{ problem.__class__.__mro__ }}", "got: access to attribute '__class__'"),
        ("{{ question + 1 }}", "got: can only concatenate str"),
        ("{{ 1 / 0 }}", "got: division by zero"),
        (" {# nothing #} ", "must give a text that is not blank, got a blank one"),
    ],
)
def test_a_bad_prompt_is_told(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Prompt(text).render(QUESTION)
    assert str(caught.value).startswith("reasoning.prompt must ")
    assert words in str(caught.value)


def test_questions_know_their_place() -> None:
    questions = read_questions([str(SAMPLE)])
    assert not questions.rejections
    assert [(ask.record.row, ask.number) for ask in questions.asks] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
        (2, 3),
        (3, 1),
        (4, 1),
        (4, 2),
    ]
    assert questions.asks[5].question.answer == "C"


def test_every_question_of_the_contest_can_be_asked(shared_data: Path) -> None:
    questions = read_questions([str(shared_data / "logic" / "round1_train_data.jsonl")])
    assert (len(questions.asks), questions.rejections) == (1421, ())
    prompt = Prompt(None)
    for ask in questions.asks:
        text = prompt.render(ask.question)
        assert text.endswith(f"{ask.question.turns[0].text}\n")
        assert reasoning_towards(f"因为。\n{ask.question.turns[1].text}", ask.question.answer) == "因为。"


def test_records_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"instruction": "a", "output": "b"}]')
    with pytest.raises(UserError, match=r"records must be logic_contest, .* got the keys instruction"):
        read_questions([str(path)])
