"""Bootstrap intervals against resampling written out, and against what must hold for any counts."""

import numpy as np
import pytest

from tests.evaluation.outcomes import outcomes
from twintune.evaluation.scores import accuracy_interval, compare, difference_interval


@pytest.mark.parametrize(("correct", "total"), [(3, 10), (60, 100), (999, 1000)])
def test_an_interval_is_that_of_drawing_the_questions_again(correct: int, total: int) -> None:
    answers = np.repeat([1.0, 0.0], [correct, total - correct])
    draws = np.random.default_rng(1).choice(answers, (3_000, total)).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    interval = accuracy_interval(correct, total)
    assert interval.low == pytest.approx(low, abs=0.011)  # of 3,000 draws
    assert interval.high == pytest.approx(high, abs=0.011)
    assert accuracy_interval(correct, total) == interval  # seeded


def test_a_paired_interval_is_that_of_drawing_the_pairs_again() -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [30, 10, 60])
    draws = np.random.default_rng(1).choice(differences, (10_000, 100)).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    interval = difference_interval(30, 10, 100)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.011)


def test_all_or_none_correct_has_no_spread() -> None:
    assert (accuracy_interval(5, 5).low, accuracy_interval(0, 5).high) == (1.0, 0.0)
    assert (difference_interval(0, 0, 5).low, difference_interval(0, 0, 5).high) == (0.0, 0.0)


def test_two_sides_are_compared_question_by_question() -> None:
    found = compare("one", outcomes("1", "2", None, "4"), "other", outcomes("1", "9", "3", "4"))
    assert (found.difference, found.only_first, found.only_second) == (0.0, 1, 1)
    assert (found.same_answer, found.same_texts, found.total) == (2, 2, 4)
    assert found.interval.low < 0 < found.interval.high
