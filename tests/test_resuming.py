import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.smallest_recipe import write_smallest_recipe
from twintune.artifacts import sha256_file
from twintune.backends import missing_packages
from twintune.backends.job import Evaluation
from twintune.checkpoints import CheckpointKeeper, best_checkpoint, find_checkpoints
from twintune.converters.training_state import STATE, TENSORS
from twintune.errors import UserError
from twintune.recipe import load_recipe
from twintune.resuming import go_on
from twintune.training import run_training
from twintune.training_plan import Run, decide

MEASURED = ("seconds", "tokens_per_second", "mfu", "peak_memory")  # what no two runs have alike

SETTINGS = [
    "data.val_size=0.2",
    "lora.lora_dropout=0.1",
    "train.max_steps=9",
    "train.gradient_accumulation_steps=2",
    "train.warmup_steps=2",
    "train.save_steps=2",
    "train.eval_steps=4",
    "train.save_total_limit=2",
]

# Fewer kills where MindSpore is installed: each of its graphs takes seconds to compile.
BACKEND = "cuda" if missing_packages("ascend") else "ascend"
KILLS: dict[str, dict[str, list[str]]] = {
    "cuda": {
        "steps": ["step3", "step5", "step8"],
        "events": ["event3", "event9", "event24", "event31", "event45", "event60"],
        "after_the_last_step": ["step9", "event20"],
    },
    "ascend": {"steps_and_events": ["step5", "event30"]},
}

IMPORTS = {
    "cuda": ["peft", "transformers.models.llama.modeling_llama", "twintune.backends.cuda.train", "pandas"],  # pyarrow's
    "ascend": ["mindformers", "twintune.backends.ascend.train"],
}
# All is imported once and each run is a fork, killed at a step or at a file that is opened or renamed.
RUNS = """
import importlib, os, signal, sys
from pathlib import Path

from twintune.progress import Progress
from twintune.recipe import load_recipe
from twintune.resuming import go_on
from twintune.training import run_training
from twintune.training_plan import decide

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at_event(last, folder):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(folder) in str(arguments[0]):
            seen += 1
            if seen == last:
                die()
    sys.addaudithook(count)

def kill_at_step(last):
    tell = Progress.step
    def step(self, step):
        tell(self, step)
        if step.step == last:
            die()
    Progress.step = step

def run(folder, kill, settings):
    if kill.startswith("step"):
        kill_at_step(int(kill[4:]))
    if kill.startswith("event"):
        kill_at_event(int(kill[5:]), folder)
    begun, _ = go_on(decide(load_recipe(Path("recipe.yaml"), settings), folder))
    run_training(begun)

for module in sys.argv[1].split(","):
    importlib.import_module(module)
for name, *kills in (line.split() for line in sys.stdin):
    for kill in [*kills, "never"]:
        child = os.fork()
        if not child:
            run(Path(name), kill, sys.argv[2:])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(name, kill, os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="trains on cuda")
    folder = tmp_path_factory.mktemp("resuming")
    write_smallest_recipe(folder, layers=1)
    return folder


@pytest.fixture(scope="module")
def outcomes(workplace: Path) -> dict[str, list[int]]:
    """Runs that are killed once and again, going on each time, until they may end; exit codes by run."""
    plan = {"unbroken": [], **KILLS[BACKEND]}
    lines = "".join(f"{name} {' '.join(kills)}\n" for name, kills in plan.items())
    imports = ",".join([*IMPORTS[BACKEND], "fastchat.conversation", "matplotlib.backends.backend_agg"])
    arguments = [sys.executable, "-c", RUNS, imports, f"backend.name={BACKEND}", *SETTINGS]
    told = subprocess.run(arguments, cwd=workplace, input=lines, capture_output=True, text=True, check=True)
    codes: dict[str, list[int]] = {name: [] for name in plan}
    for line in told.stdout.splitlines():
        if line.partition(" ")[0] in codes:  # MindFormers prints lines of its own
            name, _, code = line.split()
            codes[name].append(int(code))
    return codes


def series(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS[BACKEND])
def test_a_killed_run_goes_on_as_if_it_had_not_been(workplace: Path, outcomes: dict[str, list[int]], name: str) -> None:
    *killed, ended = outcomes[name]
    assert set(killed) == {-9}
    assert ended == 0
    run, unbroken = workplace / name, workplace / "unbroken"
    assert series(run) == series(unbroken)  # bit for bit, with dropout
    assert series(run, "evaluation.jsonl") == series(unbroken, "evaluation.jsonl")
    for file in ("adapter/adapter_model.safetensors", "checkpoint-9/optimizer.safetensors"):
        assert sha256_file(run / file) == sha256_file(unbroken / file)
    assert find_checkpoints(run).keys() == find_checkpoints(unbroken).keys()
    assert not list(run.glob(".*"))


@pytest.fixture
def ended(workplace: Path, tmp_path: Path) -> Run:
    """A run of four steps that lost its manifest, as if it had been killed while writing it."""
    run = decide(load_recipe(workplace / "recipe.yaml", SHORT), tmp_path / "run")
    run_training(run)
    (tmp_path / "run" / "manifest.json").unlink()
    return run


SHORT = [*SETTINGS, "train.max_steps=4", "train.load_best_model_at_end=true", "train.eval_steps=1"]


def refusals(run: Run) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        go_on(run)
    return caught.value.messages


def test_what_decides_numbers_must_be_the_same(workplace: Path, ended: Run) -> None:
    overrides = ["train.learning_rate=1e-4", "train.seed=7", "data.cutoff_len=200", "train.save_steps=1"]
    other = decide(load_recipe(workplace / "recipe.yaml", [*SHORT, *overrides]), ended.job.output_dir)
    keys = [message.split(": ")[1].split(" must be")[0] for message in refusals(other)]
    assert keys == ["data.cutoff_len", "rows", "train.learning_rate", "train.seed"]
    assert "train.seed must be that of the run, 0, to resume it, got 7; use the run's own" in refusals(other)[-1]


def test_an_ended_run_does_not_go_on(ended: Run) -> None:
    (ended.job.output_dir / "manifest.json").write_text("{}")
    assert refusals(ended) == (
        f"{ended.job.output_dir}: --resume must find a stopped run, got one that has ended; name a new folder",
    )


def test_a_foreign_folder_is_left_alone(ended: Run) -> None:
    (ended.job.output_dir / "started.json").unlink()
    assert "must be a new or empty folder" in refusals(ended)[0]
    assert (ended.job.output_dir / "log.jsonl").is_file()


def test_nothing_to_resume_is_said(workplace: Path, tmp_path: Path) -> None:
    run = decide(load_recipe(workplace / "recipe.yaml", SHORT), tmp_path / "new")
    assert go_on(run) == (run, f"nothing to resume in {tmp_path / 'new'}: starts at the first step")


def test_the_last_checkpoint_is_the_adapter_of_a_run_killed_at_its_end(ended: Run) -> None:
    adapter = ended.job.output_dir / "adapter" / "adapter_model.safetensors"
    before = sha256_file(adapter)
    run, sentence = go_on(ended)
    assert sentence.startswith("goes on after step 4 of 4, from checkpoint-4, which cuda wrote")
    run_training(run)
    assert sha256_file(adapter) == before
    assert json.loads((ended.job.output_dir / "manifest.json").read_text())["steps"] == 4


@pytest.mark.parametrize("file", [TENSORS, STATE, "adapter_model.safetensors"])
def test_a_broken_checkpoint_is_refused(ended: Run, file: str) -> None:
    path = ended.job.checkpoint(2) / file
    path.write_bytes(path.read_bytes()[:-3])
    shutil.rmtree(ended.job.checkpoint(4))
    shutil.rmtree(ended.job.checkpoint(3), ignore_errors=True)
    with pytest.raises(UserError, match="resume from an older one"):
        run_training(go_on(ended)[0])


def test_a_checkpoint_of_the_adapter_alone_is_refused(workplace: Path, tmp_path: Path) -> None:
    recipe = load_recipe(workplace / "recipe.yaml", [*SHORT, "train.save_only_model=true"])
    run_training(decide(recipe, tmp_path / "run"))
    (tmp_path / "run" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert not list((tmp_path / "run").glob(f"checkpoint-*/{TENSORS}"))
    with pytest.raises(UserError, match=r"train.save_only_model: true\); train again without it"):
        run_training(go_on(decide(recipe, tmp_path / "run"))[0])


def test_the_best_and_the_newest_stay(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, 2, {})
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 4.0], start=1):
        keeper.evaluated(Evaluation(step, loss, 10, 0.1))
        (tmp_path / f"checkpoint-{step}").mkdir()
        keeper.saved(step)
    assert list(find_checkpoints(tmp_path)) == [2, 5]
    assert best_checkpoint(tmp_path, keeper.losses) == 2


@pytest.mark.parametrize(("limit", "kept"), [(None, [1, 2, 10]), (2, [2, 10]), (1, [10])])
def test_without_evaluations_the_newest_stay(tmp_path: Path, limit: int | None, kept: list[int]) -> None:
    keeper = CheckpointKeeper(tmp_path, limit, {})
    for step in (1, 2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        keeper.saved(step)
    assert list(find_checkpoints(tmp_path)) == kept


def test_the_adapter_is_the_best_ones(ended: Run) -> None:
    folder = ended.job.output_dir
    evaluations = series(folder, "evaluation.jsonl")
    best = min((line["loss"], line["step"]) for line in evaluations if line["step"] in (2, 4))[1]
    weights = "adapter_model.safetensors"
    assert sha256_file(folder / "adapter" / weights) == sha256_file(folder / f"checkpoint-{best}" / weights)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages("ascend")), reason="goes on with mindformers")
def test_a_run_goes_on_with_the_other_backend(workplace: Path, tmp_path: Path) -> None:
    plain = [*SETTINGS, "train.max_steps=4", "lora.lora_dropout=0"]
    unbroken = decide(load_recipe(workplace / "recipe.yaml", plain), tmp_path / "unbroken")
    run_training(unbroken)
    shutil.copytree(tmp_path / "unbroken", tmp_path / "moved")
    (tmp_path / "moved" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "moved" / "checkpoint-4")
    other = decide(load_recipe(workplace / "recipe.yaml", [*plain, "backend.name=ascend"]), tmp_path / "moved")
    run, sentence = go_on(other)
    assert sentence.endswith("from checkpoint-2, which cuda wrote")
    run_training(run)
    before, after = series(tmp_path / "unbroken"), series(tmp_path / "moved")
    assert [line["loss"] for line in after] == pytest.approx([line["loss"] for line in before], abs=1e-5)
    assert [line["step"] for line in after] == [1, 2, 3, 4]
