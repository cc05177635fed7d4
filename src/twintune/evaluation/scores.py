"""How sure an accuracy is: bootstrap intervals, and of a difference on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twintune.evaluation.answer_log import Outcome

RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of what resampling gives, as shares of 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Two sides on the same questions.

    Attributes:
        first, second: names of the sides.
        difference: accuracy of the second minus that of the first.
        interval: of that difference.
        only_first, only_second: questions that only one of them answers correctly.
        same_answer, same_texts: questions with the same answer, and with the same texts.
        total: questions.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    only_first: int
    only_second: int
    same_answer: int
    same_texts: int
    total: int


def accuracy_interval(correct: int, total: int) -> Interval:
    """The percentile bootstrap interval of `correct` out of `total` questions.

    Drawing the questions again with replacement (Efron 1979) makes the number of correct ones binomial, so
    that it is drawn directly.
    """
    draws = np.random.default_rng(SEED).binomial(total, correct / total, RESAMPLES)
    return _middle(draws / total)


def difference_interval(gained: int, lost: int, total: int) -> Interval:
    """The paired interval of (gained - lost) / total: whole questions are drawn again, with both answers.

    Args:
        gained: questions that only the second side answers correctly.
        lost: questions that only the first one does.
        total: all questions.
    """
    shares = [gained / total, lost / total, (total - gained - lost) / total]
    draws = np.random.default_rng(SEED).multinomial(total, shares, RESAMPLES)
    return _middle((draws[:, 0] - draws[:, 1]) / total)


def compare(first: str, one: Sequence[Outcome], second: str, other: Sequence[Outcome]) -> Difference:
    """Compare the outcomes of two sides, question by question; both have the same ones."""
    pairs = list(zip(one, other, strict=True))
    lost = sum(before.correct and not after.correct for before, after in pairs)
    gained = sum(after.correct and not before.correct for before, after in pairs)
    return Difference(
        first,
        second,
        (gained - lost) / len(pairs),
        difference_interval(gained, lost, len(pairs)),
        lost,
        gained,
        sum(before.answer == after.answer for before, after in pairs),
        sum(before.texts == after.texts for before, after in pairs),
        len(pairs),
    )


def _middle(draws: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(low), float(high))
