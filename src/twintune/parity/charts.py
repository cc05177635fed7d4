"""The charts of a verdict: loss, its residual, gradient norms over the steps, and errors by stage of the network."""

from itertools import cycle
from typing import Literal

from twintune.parity.axis import Axis, Tick, axis_over, is_drawable, logarithmic_axis, symmetric_axis
from twintune.parity.drawing import Chart, Curve, Points, dots, gaps, path
from twintune.parity.verdict import Verdict
from twintune.parity.wording import figure, side_names

WHOLE_BAND = 8.0  # a limit up to so many times the largest residual is drawn whole; a wider one fills the panel
Y_TICKS = 5
X_TICKS = 6  # as many as fit a telephone
Styles = Literal["first", "second"]
STYLES: tuple[Styles, Styles] = ("first", "second")
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
    lines = {name: verdict.tolerances[name][0] for name in (HIDDEN, LOGITS) if name in verdict.tolerances}
    errors = [value for series in verdict.stage_errors.values() for value in series.values()]
    shown = [value for value in (*errors, *lines.values()) if is_drawable(value) and value > 0]
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
                Curve(name, style, path(points, x_axis, y_axis), dots(points, x_axis, y_axis))
                for style, (name, points) in zip(cycle(STYLES), series.items(), strict=False)
            ),
            _stage_ticks(stages, x_axis),
            tuple(y_axis.ticks(Y_TICKS)),
            lines=tuple(
                Tick(y_axis.place(limit), f"limit of {name} {figure(limit)}")
                for name, limit in lines.items()
                if is_drawable(limit) and limit > 0
            ),
            gaps="".join(gaps(points, x_axis) for points in series.values()),
        )
    ]


def _stage_ticks(stages: list[str], x_axis: Axis) -> tuple[Tick, ...]:
    every = max(1, -(-(len(stages) - 1) // (X_TICKS - 2)))
    numbers = [number for number in range(0, len(stages) - 1, every) if number + every / 2 < len(stages) - 1]
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
                Curve(name, style, path(points, x_axis, y_axis))
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
    limit = verdict.tolerances[LOSS][0] if LOSS in verdict.tolerances else None
    whole = limit is not None and is_drawable(limit) and (limit <= WHOLE_BAND * largest or not largest)
    x_axis = _step_axis(verdict)
    y_axis = symmetric_axis([largest, limit] if whole and limit is not None else [largest])
    mean = sum(drawable) / len(drawable) if drawable else None
    return Chart(
        "Residual of the loss, second minus first",
        _residual_note(verdict, mean, len(residuals) - len(drawable), limit, whole),
        (Curve("residual", "residual", path(residuals, x_axis, y_axis)),),
        tuple(x_axis.ticks(X_TICKS, least_step=1.0)),
        tuple(y_axis.ticks(Y_TICKS)) if drawable else (),
        band=None if limit is None else (y_axis.place(-limit), y_axis.place(limit)),
        lines=(Tick(y_axis.place(0.0), ""),) + ((Tick(y_axis.place(mean), "mean"),) if mean is not None else ()),
        gaps=gaps(residuals, x_axis),
    )


def _residual_note(verdict: Verdict, mean: float | None, not_numbers: int, limit: float | None, whole: bool) -> str:
    parts = []
    if mean is not None:
        bound = verdict.tolerances.get(MEAN_RESIDUAL)
        parts.append(f"mean {mean:+.1e}" + (f" of at most {figure(bound[0])} either way" if bound else ""))
    if not_numbers:
        parts.append(f"{not_numbers} steps whose residual is not a number are not in the mean")
    if limit is not None:
        parts.append(f"shaded: the limit of a step, {figure(limit)}" + ("" if whole else ", wider than this panel"))
    return "; ".join(parts)
