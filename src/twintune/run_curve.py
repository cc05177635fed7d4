"""loss_curve.png of a run folder, kept up to date while the run goes on."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Evaluation, Step
from twintune.figures import ACCENT, DARK, LIGHT, count_steps, save_png, tidy
from twintune.watchers import QuietWatcher

CURVE = "loss_curve.png"
SECONDS = 20.0  # between two drawings at least
PARTS = 20  # the smooth curve is the mean over so many-th part of the steps


class RunCurve(QuietWatcher):
    """A Watcher that draws the run so far, at most every so many seconds and at the end.

    Args:
        path: the PNG, written anew each time.
        steps, evaluations: those before the checkpoint from which the run goes on.
        seconds: between two drawings at least.
    """

    def __init__(
        self, path: Path, steps: Sequence[Step] = (), evaluations: Sequence[Evaluation] = (), seconds: float = SECONDS
    ) -> None:
        self.path = path
        self.steps = list(steps)
        self.evaluations = list(evaluations)
        self.seconds = seconds
        self.drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.steps:
            draw_run(self.path, self.steps, self.evaluations)

    def step(self, step: Step) -> None:
        """Add a step, and draw if it is time."""
        self.steps.append(step)
        if time.monotonic() - self.drawn >= self.seconds:
            draw_run(self.path, self.steps, self.evaluations)
            self.drawn = time.monotonic()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Add an evaluation."""
        self.evaluations.append(evaluation)


def draw_run(path: Path, steps: Sequence[Step], evaluations: Sequence[Evaluation]) -> None:
    """Draw the loss of each step, its running mean, the evaluations with the best one ringed, and the learning rate.

    Args:
        path: the PNG to write.
        steps: at least one.
        evaluations: perhaps none.
    """
    from matplotlib.figure import Figure  # without pyplot it draws with Agg: no display, no global state

    figure = Figure(figsize=(7.5, 5.0), dpi=120, layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    numbers = [step.step for step in steps]
    _draw_losses(losses, numbers, np.array([step.loss for step in steps]))
    _draw_evaluations(losses, evaluations)
    losses.set(title="Loss, mean over the trained tokens", ylabel="loss")
    losses.legend(frameon=False)
    rates.plot(numbers, [step.learning_rate for step in steps], color=DARK, linewidth=1.0)
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    count_steps(rates)
    tidy((losses, rates))
    figure.align_ylabels()
    save_png(figure, path)


def _draw_losses(panel: Any, numbers: Sequence[int], losses: NDArray[np.float64]) -> None:
    window = len(losses) // PARTS
    marker = "." if len(losses) == 1 else None
    panel.plot(numbers, losses, color=LIGHT, linewidth=1.2, marker=marker, label="training, each step")
    if window > 1:
        label = f"training, mean of {window} steps"
        panel.plot(numbers, running_mean(losses, window), color=DARK, linewidth=1.6, label=label)


def _draw_evaluations(panel: Any, evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        return
    places = [evaluation.step for evaluation in evaluations], [evaluation.loss for evaluation in evaluations]
    panel.plot(*places, color=ACCENT, linewidth=1.2, marker="o", markersize=4, label="validation")
    best = best_evaluation(evaluations)
    if best is not None:
        label = f"best validation, {best.loss:.4g} at step {best.step}"
        panel.plot([best.step], [best.loss], "o", markersize=10, markerfacecolor="none", color=ACCENT, label=label)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of each value and those before it, `window` of them at most, without those that are not finite.

    Returns:
        float64 [values]; NaN where none of them is finite.
    """
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    starts = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    count = counts[1:] - counts[starts]
    total = sums[1:] - sums[starts]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The first with the lowest loss that is a number; None if there is none."""
    numbers = [evaluation for evaluation in evaluations if not math.isnan(evaluation.loss)]
    return min(numbers, key=lambda evaluation: evaluation.loss) if numbers else None
