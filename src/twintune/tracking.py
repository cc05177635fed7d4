"""Experiment trackers that train.report_to names: they get each step and evaluation, and never stop a run.

Metric names are those of transformers' integrations, so that runs of both can be laid side by side. A run that goes
on from a checkpoint goes on in the same TensorBoard folder; the others begin a run of the same name.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from twintune.backends.job import Evaluation, Step
from twintune.errors import UserError, raise_collected
from twintune.protobuf import share_with_mindspore
from twintune.step_cost import StepCost
from twintune.trackers import MLflow, SwanLab, TensorBoard, TrackedRun, Tracker, WeightsAndBiases
from twintune.watchers import QuietWatcher

# tensorboardX writes TensorBoard's files with neither torch nor tensorboard, which a machine with MindSpore may lack.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "swanlab": "swanlab", "mlflow": "mlflow"}
WITHOUT_NETWORK = {
    "wandb": "log in with wandb login, or set WANDB_MODE=offline",
    "swanlab": "log in with swanlab login, or set SWANLAB_MODE=offline",
    "mlflow": "check MLFLOW_TRACKING_URI, or leave it unset for a file in the run folder",
}


TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[SwanLab] | type[MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "swanlab": SwanLab,
    "mlflow": MLflow,
}


class Trackers(QuietWatcher):
    """A Watcher that hands metrics to trackers, and switches off one that fails.

    Args:
        names: of the trackers.
        run: what they are told of it first.
        measure: tells what a step that has just ended cost.

    Attributes:
        failures: what went wrong with those that were switched off, by name.

    Raises:
        UserError: for a tracker that cannot be opened.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, measure: Callable[[Step], StepCost]) -> None:
        share_with_mindspore()  # TensorBoard's events are protobuf's
        self.measure = measure
        self.failures: dict[str, str] = {}
        self.trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self.trackers[name] = TRACKERS[name](run)
            except Exception as error:  # each package raises its own; whichever it is, the run has not begun
                self._close(failed=True)
                remedy = WITHOUT_NETWORK.get(name, "check the output folder")
                raise UserError(
                    f"recipe: train.report_to {name!r} must be a tracker that opens, got: {_line(error)}; {remedy}, "
                    "or leave it out"
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=error is not None)

    def step(self, step: Step) -> None:
        """Hand on what a step measured, and what it cost; MFU where it is known."""
        metrics = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
        cost = {name: value for name, value in asdict(self.measure(step)).items() if value is not None}
        self._log({f"train/{name}": value for name, value in (metrics | cost).items()}, step.step)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Hand on what an evaluation measured."""
        metrics = {"loss": evaluation.loss, "perplexity": evaluation.perplexity, "runtime": evaluation.seconds}
        self._log({f"eval/{name}": value for name, value in metrics.items()}, evaluation.step)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.log(metrics, step)
            except Exception as error:  # hours of training are worth more than their picture
                del self.trackers[name]
                self._say(name, f"switched off at step {step}: {_line(error)}")

    def _close(self, *, failed: bool) -> None:
        for name, tracker in self.trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:  # as above
                self._say(name, f"not closed: {_line(error)}")
        self.trackers = {}

    def _say(self, name: str, failure: str) -> None:
        self.failures[name] = failure
        print(f"twintune: {name} was {failure}", file=sys.stderr)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def choose_trackers(asked: Sequence[str] | None) -> tuple[str, ...]:
    """The trackers that are asked for, or TensorBoard where its writer is installed; none is imported.

    Raises:
        UserError: for every one that is asked for and not installed.
    """
    if asked is None:
        return ("tensorboard",) if find_spec(PACKAGES["tensorboard"]) else ()
    raise_collected(
        f"recipe: train.report_to {name!r} must have its package installed, got none; run: pip install {PACKAGES[name]}"
        for name in asked
        if find_spec(PACKAGES[name]) is None
    )
    return tuple(asked)


def trackers_line(asked: Sequence[str] | None) -> str:
    """What the plan says of the trackers."""
    chosen = ", ".join(choose_trackers(asked))
    if asked is not None:
        return chosen or "none, as asked"
    return f"{chosen} (its writer is installed)" if chosen else "none (pip install tensorboardX for TensorBoard's)"
