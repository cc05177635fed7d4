"""Two bundles side by side, and the numbers that say how far apart two arrays are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.parity.bundle import Bundle
from twintune.parity.tolerances import Limit
from twintune.parity.verdict import Measure, Rung


@dataclass(frozen=True)
class Pair:
    """What a rung compares.

    Attributes:
        first, second: the bundles; differences are second minus first.
        limits: how far the same job may be apart, by measure.
    """

    first: Bundle
    second: Bundle
    limits: Mapping[str, Limit]

    @property
    def bundles(self) -> tuple[Bundle, Bundle]:
        """Both, in order."""
        return self.first, self.second

    def facts(self, name: str) -> tuple[Any, Any]:
        """A fact of both; None where a bundle has it not."""
        return self.first.facts.get(name), self.second.facts.get(name)

    def arrays(self, group: str) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """A group of arrays of both."""
        return self.first.arrays(group), self.second.arrays(group)

    def measure(self, name: str, limit: str, value: float, place: str = "") -> Measure:
        """A number beside the limit of that name."""
        return Measure(name, value, self.limits[limit].value, place)


def badness(error: float) -> float:
    """An error as it is ordered: what is no number is worse than any."""
    return np.inf if np.isnan(error) else error


def worst_name(errors: Mapping[str, float]) -> str:
    """The name of the largest error."""
    return max(errors, key=lambda name: badness(errors[name]))


def largest(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest absolute difference; nan if any is, infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(other.astype(np.float64) - one.astype(np.float64)).max(initial=0.0))


def relative_largest(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return max |a - b| / max |a|: free of scale."""
    return largest(one, other) / max(float(np.abs(one).max(initial=0.0)), float(np.finfo(np.float32).tiny))


def relative_norm(one: NDArray[Any], other: NDArray[Any]) -> float:
    """||a - b|| / ||a||; 0 where both are zero."""
    difference = float(np.linalg.norm(other.astype(np.float64) - one.astype(np.float64)))
    size = float(np.linalg.norm(one.astype(np.float64)))
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def same_rung(number: int, name: str, summary: str, measures: tuple[Measure, ...] = ()) -> Rung:
    """A rung that holds."""
    return Rung(number, name, "same", summary, measures)
