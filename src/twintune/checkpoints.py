"""The checkpoints of a run folder: which are there, which is the best, and which stay."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from twintune.artifacts import new_folder
from twintune.backends.job import Evaluation
from twintune.converters.adapter import WEIGHTS
from twintune.converters.adapter_settings import CONFIG
from twintune.watchers import QuietWatcher

NAME = re.compile(r"checkpoint-(\d+)")


def find_checkpoints(run_folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in run_folder.glob("checkpoint-*"))
    return dict(sorted((int(name[1]), path) for name, path in found if name))


def best_checkpoint(run_folder: Path, losses: Mapping[int, float]) -> int | None:
    """The step of the checkpoint with the lowest evaluation loss; of equal ones the first."""
    evaluated = [step for step in find_checkpoints(run_folder) if step in losses]
    return min(evaluated, key=lambda step: losses[step], default=None)


def take_adapter(checkpoint: Path, adapter: Path) -> None:
    """Make the adapter of a checkpoint that of the run."""
    shutil.rmtree(adapter, ignore_errors=True)  # a kill from here on leaves a run that has not ended, and goes on
    with new_folder(adapter) as aside:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(checkpoint / name, aside / name)


class CheckpointKeeper(QuietWatcher):
    """Deletes old checkpoints: the best and the newest stay in any case.

    Args:
        run_folder: where they are.
        save_total_limit: how many stay; None keeps all. With 1 there are two where the best is not the newest.
        losses: evaluation loss by step, of what lies behind the checkpoint from which the run goes on.
    """

    def __init__(self, run_folder: Path, save_total_limit: int | None, losses: Mapping[int, float]) -> None:
        self.run_folder = run_folder
        self.save_total_limit = save_total_limit
        self.losses = dict(losses)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Remember how good the next checkpoint is."""
        self.losses[evaluation.step] = evaluation.loss

    def saved(self, step: int) -> None:
        """Delete the oldest that are too many."""
        if self.save_total_limit is None:
            return
        checkpoints = find_checkpoints(self.run_folder)
        kept = {step, best_checkpoint(self.run_folder, self.losses)}
        others = [folder for number, folder in checkpoints.items() if number not in kept]
        for folder in others[: max(0, len(checkpoints) - self.save_total_limit)]:
            shutil.rmtree(folder)
