"""The final answer of a solution, by example and by property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twintune.errors import UserError
from twintune.evaluation.answers import exact_match, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 * 4 = 12. The answer is 12.", "12"),
        ("The answer is: 12", "12"),
        ("the final answer is $1,234.50.", "1234.5"),
        ("The answer is 3 * 4 = 12.", "12"),
        ("The answer is 12. He has 7 left.", "12"),
        ("The answer is 5. No: the answer is 6.", "6"),
        ("The answer is 3.5. Then 2.", "3.5"),
        ("48/2 = 24\n#### 72", "72"),
        ("7 × 6 = 42，47 - 42 = 5。答案是：5", "5"),
        ("答案是：１，２３４．０元", "1"),  # a full-width comma separates, it does not group
        ("答案是：１２３４．０元。共3人", "1234"),
        ("答案是 -3", "-3"),
        ("答案是：3/4", "0.75"),
        ("答案是：", None),
        ("He has 3 apples and 12 pears", "12"),  # no marker: the last number
        ("5-3", None),  # a calculation or a range
        ("20 percent is 007.0%", "7%"),
        ("-0.0", "0"),
        ("twelve", None),
        ("", None),
        ("The answer is clear. There are 8.", "8"),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


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
