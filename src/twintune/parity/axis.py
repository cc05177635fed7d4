"""An axis of a chart: where a value lies on it, and the ticks that a reader finds round."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

LARGEST = 1e100  # beyond it the axis itself would overflow


@dataclass(frozen=True)
class Tick:
    """A mark: its place on the axis, from 0 to 1, and its text."""

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """From low to high, linear, or logarithmic where both are above 0."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high; what lies outside is put on the edge."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return min(max((self._scaled(value) - low) / (high - low), 0.0), 1.0)

    def ticks(self, most: int, least_step: float = 0.0) -> list[Tick]:
        """Round values inside the axis, at most about as many as asked for; powers of ten on a logarithmic one."""
        if self.logarithmic:
            return self._powers(most)
        step = max(_round_step((self.high - self.low) / most), least_step)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        values = [number * step for number in range(first, last + 1)]
        return [Tick(self.place(value), _label(value, step, max(abs(self.low), abs(self.high)))) for value in values]

    def _powers(self, most: int) -> list[Tick]:
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        every = max(1, math.ceil((last - first + 1) / most))
        return [Tick(self.place(10.0**power), f"1e{power:+03d}") for power in range(first, last + 1, every)]

    def _scaled(self, value: float) -> float:
        if not self.logarithmic:
            return value
        return math.log10(value) if value > 0 else -math.inf


def is_drawable(value: float) -> bool:
    """Whether a value has a place on some axis: it is a number, and not beyond LARGEST."""
    return math.isfinite(value) and abs(value) <= LARGEST


def axis_over(values: Iterable[float], margin: float = 0.05) -> Axis:
    """A linear axis over drawable values, with a share of their span free at both ends."""
    values = list(values)
    low, high = min(values), max(values)
    # Values that are all the same still want an axis that has a length.
    least = max(1e-6 * max(abs(low), abs(high)), 1e-30)
    space = max(margin * (high - low), least)
    return Axis(low - space, high + space)


def symmetric_axis(values: Iterable[float]) -> Axis:
    """A linear axis around 0 over drawable values."""
    most = max(max(map(abs, values)), 1e-30)
    return Axis(-1.15 * most, 1.15 * most)


def logarithmic_axis(values: Iterable[float]) -> Axis:
    """A logarithmic axis in whole powers of ten over drawable values above 0, with one power free below for zeros."""
    values = list(values)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 0.1)
    return Axis(10.0 ** max(low - 1, -300), 10.0 ** max(high, low + 1, -299), logarithmic=True)


def _round_step(span: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below the span."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span * (1 - 1e-9))


def _label(value: float, step: float, largest: float) -> str:
    """As many digits as tell neighbouring ticks apart; powers of ten where plain digits would be long."""
    if abs(value) < step / 2:
        return "0"
    last = math.floor(math.log10(step))
    if 1e-3 <= largest < 1e6:
        return f"{value:.{max(0, -last)}f}"
    mantissa, exponent = f"{value:.{max(0, math.floor(math.log10(abs(value))) - last)}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{exponent}"
