"""The report of a run on the fake backend: what is told, what is made safe, what is not made twice."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_backend import FakeBackend
from tests.smallest_recipe import RECORDS, write_smallest_recipe
from twintune.backends import Choice
from twintune.backends.job import Evaluation, Step
from twintune.converters.sources import stable_hash
from twintune.errors import UserError
from twintune.recipe import load_recipe
from twintune.report_command import report
from twintune.run_cost import cost_rows, duration
from twintune.run_log import EVALUATIONS, LOG, RunLog, read_costs, read_steps
from twintune.run_record import Session
from twintune.run_report import write_run_report
from twintune.step_cost import StepCost
from twintune.training import run_training
from twintune.training_plan import decide

PROMPT = "<script>alert(1)</script> | *2 + 2*?"
ONE, TWO, NONE = "generate.sample_prompts=[one]", "generate.sample_prompts=[two]", "generate.num_samples=0"


def measured(step: Step) -> StepCost:
    return StepCost(60, step.tokens / step.seconds, None, 2**30)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    patch.setenv("TWINTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    return write_smallest_recipe(tmp_path_factory.mktemp("work"), weights=False)


def put_in(patch: pytest.MonkeyPatch, fake: FakeBackend) -> FakeBackend:
    for module in ("training_plan", "chat"):
        patch.setattr(f"twintune.{module}.load_backend", lambda _: fake)
        patch.setattr(f"twintune.{module}.choose_backend", lambda asked: Choice("cuda", f"asked {asked}"))
    return fake


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    return put_in(monkeypatch, FakeBackend())


@pytest.fixture(scope="module")
def finished(recipe_file: Path, patch: pytest.MonkeyPatch) -> Path:
    put_in(patch, FakeBackend())
    overrides = ["generate.max_new_tokens=3", "train.run_name=first try", "data.val_size=0.5"]
    run_training(decide(load_recipe(recipe_file, overrides), recipe_file.parent / "finished"))
    return recipe_file.parent / "finished"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """The folder of a finished run, to change."""
    return shutil.copytree(finished, tmp_path / "run")


def texts(folder: Path, *overrides: str) -> tuple[str, str]:
    write_run_report(folder, overrides)
    return (folder / "report.md").read_text(encoding="utf-8"), (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_tells_curve_evaluation_cost_choices_versions_and_recipe(fake: FakeBackend, folder: Path) -> None:
    with RunLog(folder, measured, steps_done=10) as log:
        log.evaluated(Evaluation(5, 2.0, 61, 0.5))
        log.evaluated(Evaluation(10, 2.5, 61, 0.5))
    markdown, page = texts(folder, NONE)
    assert "No answers: recipe: generate.num_samples must be above 0 for samples, got 0" in page
    assert fake.loaded == []
    assert markdown.startswith("# first try\n")
    assert "Finished: 10 of 10 steps. Training loss 1.0000 at step 1, 0.1000 at step 10." in markdown
    assert "Lowest validation loss 2.0000 (perplexity 7.389) after step 5." in markdown
    assert "| 5 | 2.0000 | 7.389 | 61 | 0.50 | best |\n| 10 | 2.5000 | 12.182 | 61 | 0.50 |  |" in markdown
    assert "| speed | 28 trained tokens/s, 0.25 s a step, without the first step of 1 session |" in markdown
    assert "| device | cpu (asked auto) |" in markdown
    assert "| python | 3." in markdown
    assert "\n    model:\n      name_or_path: " in markdown
    assert markdown.count("(loss_curve.png)") == 1
    assert page.count('<tr class="best">') == 1
    assert re.findall(r'(?:src|href)="([^"]{0,22})', page) == ["data:image/png;base64,"]  # it needs no other file
    for cell in ("first try", "7.389", "cpu (asked auto)", "trained tokens/s"):
        assert cell in page


def test_prompts_are_answered_before_and_after(fake: FakeBackend, folder: Path) -> None:
    markdown, page = texts(folder, f"generate.sample_prompts={json.dumps([PROMPT])}")
    assert [adapter for _, adapter, *_ in fake.loaded] == [folder / "initial_adapter", folder / "adapter"]
    (sample,) = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert sample["question"] == PROMPT
    assert sample["before"] == sample["after"] != ""
    assert r"| \<script\>alert(1)\</script\> \| \*2 + 2\*? |" in markdown
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "At most 3 new tokens, the likeliest ones; after training: adapter/." in page


def test_answers_are_not_generated_again_for_the_same_adapter_and_questions(fake: FakeBackend, folder: Path) -> None:
    first = texts(folder, ONE)
    assert texts(folder, ONE) == first
    assert len(fake.loaded) == 2
    write_run_report(folder, [TWO])
    assert len(fake.loaded) == 4
    (folder / "samples.json").write_text("{", encoding="utf-8")
    write_run_report(folder, [TWO])
    assert len(fake.loaded) == 6


def test_without_prompts_the_first_validation_records_are_asked(fake: FakeBackend, folder: Path) -> None:
    write_run_report(folder, ["generate.num_samples=2"])
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]
    questions = [sample["question"] for sample in samples]
    kept = [record["instruction"] for record in RECORDS if stable_hash(record) < 0.5]  # as data.val_size is documented
    assert questions == kept[:2]


def test_a_report_without_anything_to_ask_or_evaluated_says_so(fake: FakeBackend, folder: Path) -> None:
    _, page = texts(folder, "data.val_size=0")
    assert "No answers: recipe: generate.sample_prompts must name questions, or data.val_size must be above 0" in page
    assert "Nothing was evaluated: train.eval_steps asks for it" in page
    assert fake.loaded == []


def test_a_model_that_cannot_be_loaded_loses_the_answers_alone(
    fake: FakeBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(fake, "load_model", exhausted)
    markdown, _ = texts(folder, ONE)
    assert "No answers: CUDA out of memory" in markdown
    assert "Finished: 10 of 10 steps." in markdown


def test_a_run_that_failed_has_its_report_too(fake: FakeBackend, recipe_file: Path, tmp_path: Path) -> None:
    fake.fails_at_step = 4
    folder = tmp_path / "failed"
    run = decide(load_recipe(recipe_file, [ONE]), folder)
    with pytest.raises(UserError, match="step 4"):
        run_training(run)
    assert (folder / "loss_curve.png").is_file()
    markdown, _ = texts(folder)
    assert "Stopped by UserError: step 4: loss must be finite, got nan: 3 of 10 steps." in markdown
    assert "must hold adapter/ or a checkpoint, got none" in markdown


def test_a_killed_run_answers_with_its_newest_checkpoint(fake: FakeBackend, folder: Path) -> None:
    (folder / "checkpoint-2").mkdir()
    (folder / "adapter").rename(folder / "checkpoint-10")
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write('{"step": 11, "lo')
    markdown, _ = texts(folder, ONE)
    assert [adapter for _, adapter, *_ in fake.loaded] == [folder / "initial_adapter", folder / "checkpoint-10"]
    assert "after training: checkpoint-10/." in markdown
    assert len(read_steps(folder / LOG)) == 10


def test_cost_leaves_out_the_first_step_of_each_session(finished: Path) -> None:
    steps, costs = read_steps(finished / LOG), read_costs(finished / LOG)
    sessions = [Session(1), Session(6, 2.0, "finished", 3 * 2**30, 2**29, {})]
    rows = dict(cost_rows(steps, costs, [], sessions))
    assert rows["trained tokens"] == f"70 of {sum(cost.input_tokens for cost in costs if cost):,}"
    assert rows["speed"] == "28 trained tokens/s, 0.25 s a step, without the first step of 2 sessions"
    assert rows["step 6, the first of its session"] == "0.25 s"
    assert rows["wall time, session 1"] == "not known from step 1 on: it goes on, or was killed"
    assert rows["wall time, session 2"] == "2.0 s from step 6 on, finished"
    assert rows["peak memory of the process, session 2"] == "3.00 GiB"
    assert rows["peak memory of the device, session 2"] == "0.50 GiB"
    assert "MFU" not in rows
    assert "speed" not in dict(cost_rows(steps[:1], costs[:1], [], sessions[:1]))


def test_mfu_is_that_of_all_steady_steps_together(finished: Path) -> None:
    steps = [replace(step, seconds=1.0 if step.step == 2 else 0.25) for step in read_steps(finished / LOG)]
    costs = [StepCost(9, 1.0, 0.1 if step.step == 2 else 0.5, 0) for step in steps]
    rows = dict(cost_rows(steps, costs, [], [Session(1)]))
    assert rows["MFU"] == "36.7% of the device's peak"  # (0.1 x 1 s + 8 x 0.5 x 0.25 s) / 3 s


def test_an_older_log_tells_no_cost(finished: Path) -> None:
    steps = read_steps(finished / LOG)
    rows = dict(cost_rows(steps, [None] * len(steps), [], [Session(1)]))
    assert rows["trained tokens"] == "70"
    assert "MFU" not in rows


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.44, "8.4 s"), (59.99, "60.0 s"), (723.4, "12 min 3 s"), (18425.0, "5 h 7 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_tracker_that_failed_is_in_the_report(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["sessions"][0]["trackers"] = {"wandb": "switched off at step 3: ConnectionError"}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    markdown, _ = texts(folder, NONE)
    assert "## Trackers that failed\n\n| tracker | was |\n| --- | --- |\n| wandb | switched off at step 3:" in markdown


def test_the_command_prints_where_the_report_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(folder, [NONE])
    assert capsys.readouterr().out == f"report: {folder / 'report.md'}\n"
    assert not (folder / EVALUATIONS).exists()


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: the recipe must be a file that exists"):
        write_run_report(tmp_path)
