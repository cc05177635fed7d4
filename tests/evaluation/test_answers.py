"""The final answer of a solution: by a corpus of awkward ones, by published data sets, by property."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.awkward_answers import CHOICES, NUMBERS, SAME
from twintune.converters.records import to_conversations
from twintune.errors import UserError
from twintune.evaluation.answers import answer_kind, exact_match, final_answer, same_answer

pytestmark = pytest.mark.once

# GSM8K (openai/grade-school-math, MIT License, Copyright (c) 2021 OpenAI), train.jsonl, ends of the answers.
GSM8K = [
    ("Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72", "72"),
    ("Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10", "10"),
]
# CMATH (XiaoMi/cmath, Wei et al. 2023, arXiv:2306.16636, CC-BY 4.0), cmath_dev.jsonl, golden answers, unchanged.
CMATH = [("9", "9"), ("2/6", "1/3"), ("2813.18", "2813.18"), ("12%", "12%"), ("45/7", "45/7")]


@pytest.mark.parametrize(("text", "answer"), [*NUMBERS, *GSM8K, *CMATH])
def test_the_number_that_a_text_answers(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer
    if answer is not None:
        assert final_answer(answer) == answer


@pytest.mark.parametrize(("text", "answer"), CHOICES)
def test_the_letter_that_a_text_chooses(text: str, answer: str | None) -> None:
    assert final_answer(text, "choice") == answer


@pytest.mark.parametrize(("one", "other", "same"), SAME)
def test_answers_are_the_same_by_value(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


def test_every_gold_answer_of_gsm8k_is_extracted_from_its_text(shared_data: Path) -> None:
    with (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as stream:
        texts = [json.loads(line)["answer"] for line in stream]
    assert len(texts) == 7473
    golds = [text.rpartition("####")[2].strip().replace(",", "") for text in texts]
    assert [final_answer(text) for text in texts] == golds
    assert {answer_kind(text) for text in texts[::10]} == {"number"}


@pytest.mark.parametrize("sentence", ["{}", "答：一共是{}。", r"所以 $\boxed{{{}}}$", "#### {}", "The answer is {}."])
def test_every_gold_answer_of_cmath_is_extracted_from_a_sentence(shared_data: Path, sentence: str) -> None:
    with (shared_data / "cmath" / "cmath_dev.jsonl").open(encoding="utf-8") as stream:
        golds = [json.loads(line)["golden"] for line in stream]
    assert len(golds) == 600
    for gold in golds:
        answer = final_answer(sentence.format(gold))
        assert answer is not None
        assert Fraction(answer.rstrip("%")) == Fraction(gold.rstrip("%"))
        assert answer.endswith("%") == gold.endswith("%")


def test_every_gold_answer_of_math23k_and_of_the_logic_contest_is_extracted(shared_data: Path) -> None:
    math = to_conversations(shared_data / "math23k" / "math23k_test.json")
    assert len([each for each in math if final_answer(each.messages[-1].text) is not None]) == len(math) == 1000
    logic = to_conversations(shared_data / "logic" / "round1_train_data.jsonl")
    golds = [each.messages[-1].text for each in logic]
    assert {answer_kind(gold) for gold in golds} == {"choice"}
    assert [final_answer(gold, "choice") for gold in golds] == [gold.strip()[-1] for gold in golds]


@pytest.mark.parametrize(
    "piece",
    [
        "9",
        "1,",
        "1 ",
        "1+",
        "选",
        "答案是",
        "####",
        "\\boxed{",
        "\\text{",
        "\\frac12",
        "一",
        "三分之",
        "((",
        " ",
        "\n",
        "A、",
    ],
)
@pytest.mark.parametrize("opening", ["", "The answer is "])
def test_a_model_that_loops_is_read_to_its_end(opening: str, piece: str) -> None:
    text = opening + piece * 4400  # more digits than Python reads
    for kind in ("number", "choice"):
        answer = final_answer(text, kind)
        assert answer is None or len(answer) < 20


@given(st.integers(-(10**12), 10**12))
def test_every_spelling_of_an_integer_is_one_answer(number: int) -> None:
    full_width = str(number).translate(str.maketrans("0123456789-", "０１２３４５６７８９－"))
    for spelling in (str(number), f"{number:,}", f"{number}.0", f"{number}.", f"${number}", full_width):
        assert final_answer(f"1 + 1 = 2. The answer is {spelling}") == str(number)
        assert final_answer(f"答案是：{spelling}。") == str(number)


@given(st.text())
def test_any_text_gives_a_normal_answer_or_none(text: str) -> None:
    answer = final_answer(text)
    if answer is not None:
        assert final_answer(answer) == answer
        assert exact_match(text, text)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_exact_match_is_equality_of_the_answers(predicted: int, gold: int) -> None:
    assert exact_match(f"So we get {predicted}", f"#### {gold}") == (predicted == gold)


def test_a_prediction_without_a_number_is_wrong() -> None:
    assert not exact_match("I do not know.", "The answer is 4.")


def test_gold_without_a_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"gold answer must hold a number, got 'none'"):
        exact_match("4", "none")
