"""The charts of a verdict: loss, its residual, gradient norms over the steps, and errors by stage of the network."""

import math
from itertools import cycle
from typing import Literal

from twintune.parity.axis import Axis, Tick, axis_over, is_drawable, logarithmic_axis, symmetric_axis
from twintune.parity.drawing import Chart, Points, Style, curve, gaps
from twintune.parity.verdict import Verdict
from twintune.parity.wording import figure, side_names

WHOLE_BAND = 8.0  # a limit up to so many times the largest residual is drawn whole; a wider one fills the panel
Y_TICKS = 5
X_TICKS = 6  # as many as fit a telephone
STYLES: tuple[Style, Style] = ("first", "second")
# Limits that the charts show, by their names in Verdict.tolerances.
LOSS, MEAN_RESIDUAL, HIDDEN, LOGITS = "loss", "mean_signed_residual", "hidden", "logits"


def loss_charts(verdict: Verdict) -> list[Chart]:
    """The two loss curves, and their residual where both sides have steps; none without any step."""
    curves = _curves(verdict, "loss", "Training loss", "mean over the trained tokens of each optimizer step")
    residuals = _residuals(verdict)
    return [*curves, _residual_chart(verdict, residuals)] if residuals else curves


def grad_norm_charts(verdict: Verdict) -> list[Chart]:
    """The two series of gradient norms; none without any step."""
    return _curves(verdict, "grad_norm", "Gradient norm", "over all LoRA matrices, before clipping")


def stages_of(verdict: Verdict) -> list[str]:
    """Every stage of the network in any series, from the first to the last."""
    return list(dict.fromkeys(stage for series in verdict.stage_errors.values() for stage in series))


def stage_charts(verdict: Verdict) -> list[Chart]:
    """Relative errors by stage on a logarithmic axis; none if they were not measured."""
    stages = stages_of(verdict)
    if not stages:
        return []
    limits = {name: limit for name in (HIDDEN, LOGITS) if (limit := _limit(verdict, name))}
    errors = [value for series in verdict.stage_errors.values() for value in series.values()]
    shown = [value for value in (*errors, *limits.values()) if is_drawable(value) and value > 0]
    # Zeros alone still need an axis: this is the spacing of float32.
    y_axis, x_axis = logarithmic_axis(shown or [2.0**-23]), axis_over(range(len(stages)), 0.02)
    series = {
        name: [(float(number), values[stage]) for number, stage in enumerate(stages) if stage in values]
        for name, values in verdict.stage_errors.items()
    }
    return [
        Chart(
            "Error by stage of the network",
            "largest relative error of each stage's output" + (", 0 at the lower edge" if 0.0 in errors else ""),
            tuple(
                curve(name, style, points, x_axis, y_axis)
                for style, (name, points) in zip(cycle(STYLES), series.items(), strict=False)
            ),
            _stage_ticks(stages, x_axis),
            tuple(y_axis.ticks(Y_TICKS)),
            levels=_limit_levels(limits, y_axis),
            gaps="".join(gaps(points, x_axis) for points in series.values()),
        )
    ]


def _limit_levels(limits: dict[str, float], y_axis: Axis) -> tuple[Tick, ...]:
    """A level for each limit, with the names of all that share it."""
    names: dict[float, list[str]] = {}
    for name, limit in limits.items():
        names.setdefault(limit, []).append(name)
    return tuple(
        Tick(y_axis.place(limit), f"limit of {' and '.join(sharing)}: {figure(limit)}")
        for limit, sharing in names.items()
    )


def _stage_ticks(stages: list[str], x_axis: Axis) -> tuple[Tick, ...]:
    every = max(1, -(-(len(stages) - 1) // (X_TICKS - 2)))
    numbers = [number for number in range(0, len(stages) - 1, every) if number + every / 2 <= len(stages) - 1]
    return tuple(Tick(x_axis.place(number), stages[number]) for number in [*numbers, len(stages) - 1])


def _curves(verdict: Verdict, what: Literal["loss", "grad_norm"], title: str, note: str) -> list[Chart]:
    series: list[Points] = [[(float(step.step), getattr(step, what)) for step in side.steps] for side in verdict.sides]
    every = [point for points in series for point in points]
    if not every:
        return []
    drawable = [y for _, y in every if is_drawable(y)]
    x_axis, y_axis = _step_axis(verdict), axis_over(drawable or [0.0])
    return [
        Chart(
            title,
            note,
            tuple(
                curve(name, style, points, x_axis, y_axis)
                for style, name, points in zip(STYLES, side_names(verdict), series, strict=True)
                if points
            ),
            tuple(x_axis.ticks(X_TICKS, least_step=1.0)),
            tuple(y_axis.ticks(Y_TICKS)) if drawable else (),
            gaps="".join(gaps(points, x_axis) for points in series),
        )
    ]


def _step_axis(verdict: Verdict) -> Axis:
    return axis_over([float(step.step) for side in verdict.sides for step in side.steps], 0.01)


def _residuals(verdict: Verdict) -> Points:
    """Second minus first of every step that both have."""
    first, second = ({step.step: step.loss for step in side.steps} for side in verdict.sides)
    return [(float(step), second[step] - loss) for step, loss in first.items() if step in second]


def _residual_chart(verdict: Verdict, residuals: Points) -> Chart:
    drawable = [y for _, y in residuals if is_drawable(y)]
    largest = max(map(abs, drawable), default=0.0)
    limit = _limit(verdict, LOSS)
    shown = [largest] if limit is None or (largest and limit > WHOLE_BAND * largest) else [largest, limit]
    x_axis, y_axis = _step_axis(verdict), symmetric_axis(shown)
    mean = sum(drawable) / len(drawable) if drawable else None
    notes = [*_mean_notes(verdict, mean, len(residuals) - len(drawable)), *_band_notes(limit, largest)]
    return Chart(
        "Residual of the loss, second minus first",
        "; ".join(notes),
        (curve("residual", "residual", residuals, x_axis, y_axis),),
        tuple(x_axis.ticks(X_TICKS, least_step=1.0)),
        tuple(y_axis.ticks(Y_TICKS)) if max(shown) else (),
        band=None if limit is None else (y_axis.place(-limit), y_axis.place(limit)),
        zero=y_axis.place(0.0),
        levels=() if mean is None else (Tick(y_axis.place(mean), ""),),
        gaps=gaps(residuals, x_axis),
    )


def _limit(verdict: Verdict, name: str) -> float | None:
    """A limit by its name, if there is one that a chart can show."""
    limit, _ = verdict.tolerances.get(name, (math.nan, ""))
    return limit if is_drawable(limit) and limit >= 0 else None


def _mean_notes(verdict: Verdict, mean: float | None, not_numbers: int) -> list[str]:
    notes = []
    if mean is not None:
        limit = _limit(verdict, MEAN_RESIDUAL)
        notes.append(
            f"dashed: the mean, {mean:+.1e}" + ("" if limit is None else f", limit {figure(limit)} either way")
        )
    if not_numbers:
        notes.append(f"{not_numbers} steps whose residual is not a finite number are not in the mean")
    return notes


def _band_notes(limit: float | None, largest: float) -> list[str]:
    if limit is None:
        return []
    width = ""
    if limit < largest / 100:
        width = ", too narrow to be seen here"
    elif largest and limit > WHOLE_BAND * largest:
        width = ", wider than this panel"
    return [f"shaded: the limit of one step, {figure(limit)}{width}"]
