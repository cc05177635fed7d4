"""How a verdict's numbers and sides are put into words, the same in every report."""

import math
from typing import Literal

from twintune.parity.verdict import Measure, Rung, Side, Verdict

NO_PACKAGE = "none"

Outcome = Literal["same", "incomplete", "different"]
HEADLINES: dict[Outcome, str] = {
    "same": "The same job",
    "incomplete": "No difference found, but not everything was measured",
    "different": "Not the same job",
}


def outcome(verdict: Verdict) -> Outcome:
    """Whether no rung differs, and whether all were measured: what was not measured is not shown as proven."""
    if not verdict.same:
        return "different"
    measured = all(rung.status == "same" for rung in verdict.rungs)
    return "same" if measured and verdict.rungs else "incomplete"


def detail(verdict: Verdict) -> str:
    """What the verdict's sentence says after its first words, which the headline says."""
    _, _, rest = verdict.sentence.partition(": ")
    return rest


def conclusion(verdict: Verdict) -> str:
    """The verdict in one sentence, which does not call the same what was not measured."""
    return f"{HEADLINES[outcome(verdict)]}: {detail(verdict)}"


def figure(value: float) -> str:
    """A number in three digits, as a power of ten below a hundredth; whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    if abs(value) >= 0.01:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def value_and_limit(measure: Measure) -> tuple[str, str]:
    """Both as text that shows on which side of its limit the value is; the limit is empty if there is none."""
    if measure.limit is None:
        return figure(measure.value), ""
    value, limit = figure(measure.value), figure(measure.limit)
    if value == limit and measure.value != measure.limit:
        return repr(measure.value), repr(measure.limit)
    return value, limit


def share_of_limit(measure: Measure) -> str:
    """How far a value is from its limit, such as `12% of the limit` or `40 times the limit`."""
    if not measure.limit or not math.isfinite(measure.value):
        return ""
    share = abs(measure.value) / measure.limit
    if share == 0 or measure.value == measure.limit:
        return ""
    if share > 10:
        return f"{figure(round(share))} times the limit" if share < 1e6 else f"{share:.1e} times the limit"
    if share > 1:
        return f"{share:.2f} times the limit"
    return f"{share:.0%} of the limit" if share >= 0.01 else "under 1% of the limit"


def deciding_measure(rung: Rung) -> Measure | None:
    """The measure that does not hold, else the one nearest to its limit; None if no number decided."""
    limited = [measure for measure in rung.measures if measure.limit is not None]
    broken = [measure for measure in limited if not measure.holds]
    if broken:
        return broken[0]
    if rung.status == "different":
        return None
    return max(limited, key=_nearness, default=None)


def _nearness(measure: Measure) -> float:
    return measure.value / measure.limit if measure.limit else 0.0


def ladder_rows(verdict: Verdict) -> list[tuple[str, str, str, str, str, str]]:
    """A line a rung: number, name, status, deciding measure, value, limit; without one, the rung's summary."""
    rows: list[tuple[str, str, str, str, str, str]] = []
    for rung in verdict.rungs:
        measure = deciding_measure(rung)
        numbers = (rung.summary, "", "") if measure is None else (measure.name, *value_and_limit(measure))
        rows.append((str(rung.number), rung.name, rung.status, *numbers))
    return rows


def side_names(verdict: Verdict) -> tuple[str, str]:
    """`first: NAME` and `second: NAME`, since differences are second minus first and names may be equal."""
    first, second = verdict.sides
    return f"first: {first.name}", f"second: {second.name}"


def computed_by(side: Side) -> str:
    """Backend, device and dtype of a side."""
    return f"{side.backend}, {side.device}, {side.dtype}"


def version_rows(verdict: Verdict) -> list[tuple[str, str, str, bool]]:
    """Every package of either side: its name, both versions, and whether they are the same; differing ones first."""
    first, second = (side.versions for side in verdict.sides)
    packages = list(dict.fromkeys([*first, *second]))
    rows = [(package, first.get(package, NO_PACKAGE), second.get(package, NO_PACKAGE)) for package in packages]
    return sorted([(*row, row[1] == row[2]) for row in rows], key=lambda row: row[3])
