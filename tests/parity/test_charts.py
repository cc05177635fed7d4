"""Charts as geometry: where curves, bands and gaps lie, whatever the numbers are."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, strategies

from tests.parity.demo_verdicts import LIMITS, make_sides, make_stage_errors, passing_verdict
from twintune.backends.job import Step
from twintune.parity.axis import LARGEST, Axis, axis_over, logarithmic_axis, symmetric_axis
from twintune.parity.charts import grad_norm_charts, loss_charts, stage_charts, stages_of
from twintune.parity.drawing import SIZE
from twintune.parity.verdict import Verdict

NUMBERS = strategies.floats(-LARGEST, LARGEST)
ANY_NUMBERS = strategies.lists(strategies.floats(), min_size=1, max_size=5)


def with_losses(first: list[float], second: list[float]) -> Verdict:
    verdict = passing_verdict()
    sides = tuple(
        replace(side, steps=tuple(Step(number, loss, loss, 0.0, 1, 0.1) for number, loss in enumerate(losses, start=1)))
        for side, losses in zip(verdict.sides, (first, second), strict=True)
    )
    return replace(verdict, sides=(sides[0], sides[1]))


def points(path: str) -> list[tuple[float, float]]:
    """The corners of a path, y from the bottom in shares of the drawing."""
    corners = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)
    return [(float(x) / SIZE, 1 - float(y) / SIZE) for x, y in corners]


@given(strategies.lists(NUMBERS, min_size=1, max_size=6))
def test_every_number_lies_on_its_axis_and_ticks_are_few_and_told_apart(values: list[float]) -> None:
    axes = [axis_over(values), symmetric_axis(values)]
    if above := [abs(value) for value in values if value]:
        axes.append(logarithmic_axis(above))
    for axis in axes:
        assert axis.low < axis.high
        assert all(0 <= axis.place(value) <= 1 for value in values)
        ticks = axis.ticks(5)
        assert len(ticks) <= 6
        assert len({tick.label for tick in ticks}) == len(ticks)
        assert all(0 <= tick.place <= 1 for tick in ticks)


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Axis(0.0, 4.4), ["0", "1", "2", "3", "4"]),
        (Axis(0.93231, 0.93234), ["0.93231", "0.93232", "0.93233", "0.93234"]),
        (Axis(-1.15e-5, 1.15e-5), ["-1e-05", "-5e-06", "0", "5e-06", "1e-05"]),
        (Axis(1e-8, 1e-2, logarithmic=True), ["1e-08", "1e-06", "1e-04", "1e-02"]),
    ],
)
def test_ticks_are_round(axis: Axis, labels: list[str]) -> None:
    assert [tick.label for tick in axis.ticks(5)] == labels


def test_steps_have_whole_ticks() -> None:
    assert [tick.label for tick in axis_over([1.0, 2.0, 3.0]).ticks(6, least_step=1.0)] == ["1", "2", "3"]


def test_both_curves_are_drawn_on_one_scale() -> None:
    loss, _ = loss_charts(with_losses([4.0, 2.0, 1.0], [4.0, 1.0, 1.0]))
    first, second = (points(curve.path) for curve in loss.curves)
    assert [curve.style for curve in loss.curves] == ["first", "second"]
    assert first[0] == second[0]
    assert first[2] == second[2]
    assert first[1][1] > second[1][1]
    assert 0 < first[0][0] < first[1][0] < first[2][0] < 1


def test_the_residual_is_second_minus_first_over_the_steps_that_both_have() -> None:
    _, residual = loss_charts(with_losses([4.0, 2.0, 1.0], [4.0 + 2**-20, 2.0 - 2**-19]))
    above, below = (y for _, y in points(residual.curves[0].path))
    assert residual.zero == 0.5
    assert above - 0.5 == pytest.approx((0.5 - below) / 2, abs=1e-3)  # paths are rounded to 1e-4
    assert "mean -4.8e-07" in residual.note.replace("the mean,", "mean")  # -2**-21


@pytest.mark.parametrize(
    ("residual", "note", "band"),
    [
        (2e-6, "1e-05", (0.5 - 0.5 / 1.15, 0.5 + 0.5 / 1.15)),
        (1e-7, "1e-05, wider than this panel", (0.0, 1.0)),
        (0.0, "1e-05", (0.5 - 0.5 / 1.15, 0.5 + 0.5 / 1.15)),
        (1.0, "1e-05, too narrow to be seen here", (0.5, 0.5)),
    ],
)
def test_the_limit_of_a_step_is_a_band_and_the_note_says_how_wide(
    residual: float, note: str, band: tuple[float, float]
) -> None:
    _, chart = loss_charts(with_losses([0.0], [residual]))
    assert chart.note.endswith(f"shaded: the limit of one step, {note}")
    assert chart.band == pytest.approx(band, abs=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_breaks_the_curve_and_is_marked_and_counted(broken: float) -> None:
    loss, residual = loss_charts(with_losses([4.0, broken, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]))
    assert [len(points(curve.path)) for curve in loss.curves] == [3, 4]
    assert loss.curves[0].path.count("M") == 2
    assert loss.gaps.count("M") == residual.gaps.count("M") == 1
    assert "1 steps whose residual is not a finite number are not in the mean" in residual.note


def test_without_steps_there_is_no_chart() -> None:
    verdict = with_losses([], [])
    assert loss_charts(verdict) == grad_norm_charts(verdict) == []
    assert len(loss_charts(with_losses([1.0], []))) == 1


def test_stages_keep_their_order_and_a_jump_is_seen() -> None:
    verdict = replace(passing_verdict(), stage_errors=make_stage_errors(12, broken_from=3))
    (chart,) = stage_charts(verdict)
    heights = [y for _, y in points(chart.curves[0].path)]
    assert len(heights) == len(stages_of(verdict)) == 15
    assert heights[0] == 0.0  # an error of zero lies on the lower edge
    (limit,) = chart.levels  # hidden and logits share it
    assert max(heights[:4]) < limit.place < min(heights[4:])
    assert limit.label == "limit of hidden and logits: 1e-04"
    assert [tick.label for tick in chart.x_ticks][:: len(chart.x_ticks) - 1] == ["embed_tokens", "logits"]


@given(ANY_NUMBERS, ANY_NUMBERS, strategies.floats())
def test_no_number_breaks_a_chart(first: list[float], second: list[float], limit: float) -> None:
    verdict = replace(
        with_losses(first, second),
        stage_errors={"with": {str(number): value for number, value in enumerate(first)}},
        tolerances=dict.fromkeys(LIMITS, (limit, "")),
    )
    for chart in (*loss_charts(verdict), *grad_norm_charts(verdict), *stage_charts(verdict)):
        drawn = [*(curve.path + curve.dots for curve in chart.curves), chart.gaps]
        assert not re.search(r"[^MLVh0-9. ]", "".join(drawn))
        places = [tick.place for tick in (*chart.x_ticks, *chart.y_ticks, *chart.levels)] + list(chart.band or ())
        assert all(0 <= place <= 1 for place in places)


def test_a_long_run_keeps_every_step() -> None:
    verdict = replace(passing_verdict(), sides=make_sides(2000))
    assert [len(points(curve.path)) for curve in loss_charts(verdict)[0].curves] == [2000, 2000]
