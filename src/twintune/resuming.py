"""Going on with a run that was stopped, from its newest checkpoint, as if it had never stopped."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twintune.artifacts import MANIFEST, refuse_used_folder, sha256_json, write_json
from twintune.checkpoints import find_checkpoints
from twintune.converters.training_state import read_facts
from twintune.errors import UserError, raise_collected
from twintune.trees import flat

if TYPE_CHECKING:
    from twintune.training_plan import Run

STARTED = "started.json"
# What decides no number of the training, and may differ where a run goes on.
FREE = (
    "evaluate",
    "generate",
    "reasoning",
    "backend.name",
    "backend.device",
    "backend.cuda",
    "backend.ascend.data_parallel",
    "backend.ascend.model_parallel",
    "backend.ascend.pipeline_stage",
    "train.per_device_train_batch_size",
    "train.gradient_accumulation_steps",
    "train.eval_steps",
    "train.evals_per_epoch",
    "train.per_device_eval_batch_size",
    "train.save_steps",
    "train.saves_per_epoch",
    "train.save_total_limit",
    "train.save_only_model",
    "train.load_best_model_at_end",
    "train.gradient_checkpointing",
    "train.report_to",
    "train.run_name",
    "data.preprocessing_num_workers",
)
ROWS_OF_A_STEP = "train.per_device_train_batch_size x train.gradient_accumulation_steps x devices"
PLACES = ("data.train", "model.name_or_path")  # the rows and the model's config.json say what is there


def write_started(run: "Run") -> None:
    """Write what must be the same where this run goes on: the first file of a run folder."""
    write_json(run.job.output_dir / STARTED, _facts(run))


def _facts(run: "Run") -> dict[str, Any]:
    """What decides the numbers of a run, by name; how its rows are dealt to devices and micro-batches does not."""
    recipe = flat(run.recipe.model_dump(mode="json"))
    deciding = {key: value for key, value in recipe.items() if not key.startswith(FREE)}
    return deciding | {
        "rows": run.prepared.summary.fingerprint,
        "backend.dtype": run.dtype.value,
        ROWS_OF_A_STEP: run.job.order[0].size,
    }


def deciding_facts(run: "Run") -> dict[str, Any]:
    """What must be the same on all ranks of a run, wherever their machines keep recipe, records and model."""
    facts = {key: value for key, value in _facts(run).items() if not key.startswith(PLACES)}
    return facts | {"model": sha256_json(run.config), "backend.name": run.backend.value}


def resumed_at(run: "Run", folder: Path, step: int) -> "Run":
    """The run from the checkpoint after a step, which rank 0 has chosen in the run folder.

    Raises:
        UserError: if this rank does not see it.
    """
    checkpoint = folder / f"checkpoint-{step}"
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint}: every rank must see the run folder to resume, got nothing there on rank "
            f"{run.job.rank.number}; put --output-dir on a disk that all machines share"
        )
    return replace(run, job=replace(run.job, resume_from=checkpoint, steps_done=step))


def go_on(run: "Run") -> "tuple[Run, str]":
    """The run from its newest checkpoint, and a sentence on it; from the beginning where there is none.

    What a killed run left half-written is removed.

    Raises:
        UserError: if the folder holds something else, a run that has ended, or one of another recipe or rows.
    """
    folder = run.job.output_dir
    if not (folder / STARTED).is_file():
        for half_written in folder.glob(f".{STARTED}.*.part"):  # a foreign folder's files are not touched
            half_written.unlink()
        refuse_used_folder(folder)
        return run, f"nothing to resume in {folder}: starts at the first step"
    if (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: --resume must find a stopped run, got one that has ended; name a new folder")
    raise_collected(_differences(run, folder))
    for half_written in folder.glob(".*.part"):
        shutil.rmtree(half_written) if half_written.is_dir() else half_written.unlink()
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        shutil.rmtree(folder)
        return run, f"no checkpoint in {folder} yet: starts again at the first step"
    step, checkpoint = list(checkpoints.items())[-1]
    backend = read_facts(checkpoint)["backend"]
    sentence = f"goes on after step {step} of {len(run.job.order)}, from {checkpoint.name}, which {backend} wrote"
    return replace(run, job=replace(run.job, resume_from=checkpoint, steps_done=step)), sentence


def _differences(run: "Run", folder: Path) -> Iterator[str]:
    before, now = json.loads((folder / STARTED).read_text(encoding="utf-8")), _facts(run)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield (
                f"{folder}: {key} must be that of the run, {before.get(key)!r}, to resume it, got {now.get(key)!r}; "
                "use the run's own recipe.yaml, or train into a new folder"
            )
