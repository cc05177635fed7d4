"""What fills a run folder while a run trains, also where it goes on from a checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_backend import FakeBackend
from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import Choice
from twintune.backends.job import Evaluation, Step
from twintune.errors import UserError
from twintune.recipe import load_recipe
from twintune.run_log import EVALUATIONS, LOG, RunLog, read_evaluations, read_log
from twintune.run_record import Chosen, RunRecord, read_record, record_session
from twintune.run_watch import watch_run
from twintune.step_cost import cost_meter
from twintune.trackers import TrackedRun
from twintune.tracking import PACKAGES, TRACKERS
from twintune.training import run_training
from twintune.training_plan import Run, decide

STEPS = [Step(number, 2.0 / number, 0.5, 1e-3, 30, 0.5) for number in range(1, 6)]
RECORD = RunRecord(5, Chosen("cuda", "cpu", "float32"), [], {})


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = FakeBackend()
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("twintune.training_plan.load_backend", lambda _: fake)
    monkeypatch.setattr("twintune.training_plan.choose_backend", lambda asked: Choice("cuda", f"asked {asked}"))
    return write_smallest_recipe(tmp_path / "work", weights=False)


def decided(recipe_file: Path, *overrides: str) -> Run:
    return decide(load_recipe(recipe_file, overrides), recipe_file.parent / "out")


def test_a_run_that_goes_on_adds_to_what_its_folder_has(recipe_file: Path) -> None:
    run = decided(recipe_file)
    folder = run.job.output_dir
    folder.mkdir()
    with record_session(folder, RECORD), RunLog(folder, cost_meter(run)) as log:
        for step in STEPS[:3]:
            log.step(step)
        log.evaluated(Evaluation(3, 1.0, 90, 1.5))
    run = replace(run, job=replace(run.job, steps_done=3, device="npu"))
    with watch_run(run, RECORD) as watcher:
        for step in STEPS[3:]:
            watcher.step(step)
        watcher.evaluated(Evaluation(5, 0.5, 90, 1.5))
    assert read_log(folder / LOG) == STEPS
    assert [evaluation.step for evaluation in read_evaluations(folder / EVALUATIONS)] == [3, 5]
    first, second = read_record(folder).sessions
    assert (first.first_step, first.device_memory) == (1, None)
    assert (second.first_step, second.device_memory, second.ended) == (4, 7 * 2**30, "finished")
    assert (folder / "loss_curve.png").is_file()


def test_the_recipe_lies_beside_each_checkpoint(recipe_file: Path) -> None:
    run = decided(recipe_file)
    run.job.checkpoint(2).mkdir(parents=True)
    with watch_run(run, RECORD) as watcher:
        watcher.saved(2)
    assert load_recipe(run.job.checkpoint(2) / "recipe.yaml") == run.recipe


def test_a_tracker_without_its_package_is_refused_before_any_work(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_wandb")
    with pytest.raises(UserError, match="run: pip install no_such_wandb"):
        decided(recipe_file, "train.report_to=[wandb]")
    assert not (recipe_file.parent.parent / "cache").exists()  # nothing was prepared


def test_a_tracker_that_does_not_open_leaves_no_folder(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: TrackedRun) -> None:
        raise ValueError("no api_key")

    monkeypatch.setitem(PACKAGES, "wandb", "json")  # a package that is here
    monkeypatch.setitem(TRACKERS, "wandb", refuse)
    run = decided(recipe_file, "train.report_to=[wandb]")
    with pytest.raises(UserError, match="no api_key"):
        run_training(run)
    assert not run.job.output_dir.exists()
