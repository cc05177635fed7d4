"""How numbers become words: what decides a rung, how near it is to its limit, what an outcome is called."""

import math
from dataclasses import replace

import pytest

from tests.parity.demo_verdicts import failing_verdict, incomplete_verdict, passing_verdict
from twintune.parity.verdict import Measure, Rung
from twintune.parity.wording import deciding_measure, figure, outcome, share_of_limit, value_and_limit


def test_an_outcome_is_the_same_only_where_all_rungs_hold() -> None:
    assert outcome(passing_verdict()) == "same"
    assert outcome(incomplete_verdict()) == outcome(replace(passing_verdict(), rungs=())) == "incomplete"
    assert outcome(failing_verdict()) == "different"


@pytest.mark.parametrize(
    ("measures", "decides"),
    [
        ((Measure("a", 1.0, 4.0), Measure("b", 3.0, 4.0), Measure("shown", 9.0)), "b"),
        ((Measure("a", 3.9, 4.0), Measure("b", 5.0, 4.0)), "b"),
        ((Measure("a", 0.0, 0.0), Measure("b", math.nan, 1.0)), "b"),
        ((Measure("a", 0.0, 0.0), Measure("b", 0.0, 0.0)), "a"),
        ((Measure("shown", 9.0),), None),
    ],
)
def test_the_measure_that_decides(measures: tuple[Measure, ...], decides: str | None) -> None:
    measure = deciding_measure(Rung(1, "x", "same", "", measures))
    assert (None if measure is None else measure.name) == decides


def test_no_measure_that_holds_decides_a_difference() -> None:
    assert deciding_measure(Rung(1, "x", "different", "", (Measure("a", 0.0, 1.0),))) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1204.0, "1204"), (0.61, "0.61"), (4.8281, "4.83"), (2.4e-6, "2.4e-06"), (1e-4, "1e-04")],
)
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "limit", "words"),
    [
        (2.4e-6, 1e-5, "24% of the limit"),
        (1e-9, 1e-5, "under 1% of the limit"),
        (1.5e-5, 1e-5, "1.50 times the limit"),
        (0.61, 1e-4, "6100 times the limit"),
        (0.0, 1e-5, ""),
        (3.0, 0.0, ""),
        (math.nan, 1e-5, ""),
    ],
)
def test_how_far_a_value_is_from_its_limit(value: float, limit: float, words: str) -> None:
    assert share_of_limit(Measure("", value, limit)) == words


def test_a_value_a_little_above_its_limit_does_not_read_as_equal() -> None:
    assert value_and_limit(Measure("", 1.0004e-5, 1e-5)) == ("1.0004e-05", "1e-05")
