"""TensorBoard, wandb, swanlab and mlflow, each as the few calls that a run needs; twintune.tracking drives them."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "twintune"
MLFLOW_BATCH = 100  # parameters that mlflow takes at once


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it begins.

    Attributes:
        folder: the run folder; what a tracker writes here, it writes below it.
        name: shown in the tracker.
        settings: the recipe's values by `section.key`.
        steps_done: steps behind the checkpoint from which it goes on.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    steps_done: int = 0


class Tracker(Protocol):
    """One tracker, open."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take some metrics of a step."""

    def close(self, *, failed: bool) -> None:
        """Write what is left, and how the run ended."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        purge = run.steps_done + 1 if run.steps_done else None  # what a killed run told of later steps is hidden
        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a scalar for each."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, whose own environment variables (WANDB_MODE, WANDB_PROJECT) hold."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(project=project, name=run.name, dir=str(run.folder), config=dict(run.settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log them under the step."""
        self.run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self.run.finish(exit_code=int(failed))


class SwanLab:
    """A run of swanlab, whose own environment variables (SWANLAB_MODE) hold."""

    def __init__(self, run: TrackedRun) -> None:
        import swanlab

        project = os.environ.get("SWANLAB_PROJECT", PROJECT)
        logs = str(run.folder / "swanlog")
        self.run = swanlab.init(project=project, name=run.name, log_dir=logs, config=dict(run.settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log them under the step."""
        self.run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run."""
        self.run.finish("crashed" if failed else "success", "see the run folder" if failed else None)


class MLflow:
    """A run of mlflow at MLFLOW_TRACKING_URI, or in `mlflow.db` of the run folder."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        own = f"sqlite:///{run.folder.resolve() / 'mlflow.db'}"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        self.run_id = self.client.create_run(number, run_name=run.name).info.run_id
        settings = [Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(settings), MLFLOW_BATCH):
            self.client.log_batch(self.run_id, params=settings[start : start + MLFLOW_BATCH])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log them under the step."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())  # milliseconds, as mlflow counts
        self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self, *, failed: bool) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
