"""Doing a run that is decided: the backend trains, and the run folder fills."""

import platform
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from twintune.artifacts import MANIFEST, RECIPE, refuse_used_folder, sha256_file, write_json
from twintune.checkpoints import CheckpointKeeper, best_checkpoint, take_adapter
from twintune.converters.adapter import WEIGHTS, write_initial_adapter
from twintune.plan_view import plan_lines
from twintune.resuming import write_started
from twintune.run_log import EVALUATIONS, LOG, cut_back, read_evaluations
from twintune.run_record import Chosen, RunRecord
from twintune.run_watch import watch_run
from twintune.training_plan import Run
from twintune.watchers import QuietWatcher

PACKAGES = ("torch", "peft", "mindspore", "mindformers", "transformers", "tokenizers", "numpy")


def run_training(run: Run) -> None:
    """Do a run, or the rest of one: logs, checkpoints, `adapter/`, `recipe.yaml`, `manifest.json` in its output folder.

    Raises:
        UserError: what the backend raises; the folder is removed again if no step was taken.
    """
    job = run.job
    if job.resume_from is None:
        refuse_used_folder(job.output_dir)
        job.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        if job.resume_from is None:
            _write_start(run)
        else:
            for sentence in cut_back(job.output_dir, job.steps_done):
                print(sentence, file=sys.stderr)
        losses = {one.step: one.loss for one in read_evaluations(job.output_dir / EVALUATIONS)}
        keeper = CheckpointKeeper(job.output_dir, run.recipe.train.save_total_limit, losses)
        _train(run, keeper)
        best = best_checkpoint(job.output_dir, keeper.losses)
        if run.recipe.train.load_best_model_at_end and best is not None:
            take_adapter(job.checkpoint(best), job.output_dir / "adapter")
        run.recipe.save(job.output_dir / "adapter" / RECIPE)
        _write_manifest(run, best)
    except BaseException:
        log = job.output_dir / LOG
        if not log.exists() or not log.stat().st_size:
            shutil.rmtree(job.output_dir)
        raise


def train_beside(run: Run) -> None:
    """Do the part of a run that belongs to a rank other than 0, and leave nothing but what rank 0 writes.

    Raises:
        UserError: what the backend raises.
    """
    job = run.job
    if job.steps_done < len(job.order):
        write_initial_adapter(job.initial_adapter, job.model, run.config, job.adapter, job.seed)
        run.framework.train(job, QuietWatcher())


def _train(run: Run, keeper: CheckpointKeeper) -> None:
    job = run.job
    chosen = Chosen(run.backend.value, run.device.value, run.dtype.value)
    with watch_run(run, RunRecord(len(job.order), chosen, plan_lines(run), versions()), [keeper]) as watcher:
        if job.resume_from is not None and job.steps_done == len(job.order):  # killed after its last step
            take_adapter(job.resume_from, job.output_dir / "adapter")
        else:
            run.framework.train(job, watcher)


def _write_start(run: Run) -> None:
    job = run.job
    write_started(run)
    write_initial_adapter(job.initial_adapter, job.model, run.config, job.adapter, job.seed)
    run.recipe.save(job.initial_adapter / RECIPE)  # so that the report's answers before training are asked alike
    run.recipe.save(job.output_dir / RECIPE)


def _write_manifest(run: Run, best: int | None) -> None:
    job = run.job
    write_json(
        job.output_dir / MANIFEST,
        {
            "backend": asdict(run.backend),
            "device": asdict(run.device),
            "dtype": asdict(run.dtype),
            "optimizer": asdict(run.optimizer),
            "steps": len(job.order),
            "best_checkpoint": best,
            "adapter_is_of_the_best": run.recipe.train.load_best_model_at_end,
            "rows_fingerprint": run.prepared.summary.fingerprint,
            "initial_adapter_sha256": sha256_file(job.initial_adapter / WEIGHTS),
            "adapter_sha256": sha256_file(job.output_dir / "adapter" / WEIGHTS),
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """Python and the packages that decide numbers, as installed; without those that are not."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
