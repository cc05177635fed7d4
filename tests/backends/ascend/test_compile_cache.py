"""Kept graphs: never that of another job, and the same losses as without them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import Recorder, make_job
from tests.tiny_models import save_tiny_model
from twintune.backends.ascend.runtime import import_quietly

import_quietly()

from twintune.artifacts import sha256_json
from twintune.backends.ascend.compile_cache import MOST, what_decides
from twintune.backends.ascend.profile import training_config
from twintune.backends.ascend.train import train
from twintune.backends.job import Lora, Schedule, TrainJob
from twintune.converters.adapter import write_initial_adapter
from twintune.models import read_model_config

LORA = Lora(4, 8, 0.1, ("q_proj", "down_proj"))
SHAPES = [[2, 33], [2, 33]]


def key(job: TrainJob, shapes: list[list[int]] = SHAPES) -> str:
    return sha256_json(what_decides(job, training_config(job, job.device), shapes))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("job"), lora=LORA)


CHANGES: dict[str, Any] = {
    "lora_alpha": lambda job: {"adapter": replace(LORA, lora_alpha=16)},
    "lora_dropout": lambda job: {"adapter": replace(LORA, lora_dropout=0.2)},
    "target_modules": lambda job: {"adapter": replace(LORA, target_modules=("q_proj",))},
    "learning_rate": lambda job: {"optimizer": replace(job.optimizer, learning_rate=2e-2)},
    "max_grad_norm": lambda job: {"optimizer": replace(job.optimizer, max_grad_norm=0.5)},
    "weight_decay": lambda job: {"optimizer": replace(job.optimizer, weight_decay=0.0)},
    "optim": lambda job: {"optimizer": replace(job.optimizer, optim="lion_32bit")},
    "warmup_steps": lambda job: {"schedule": replace(job.schedule, warmup_steps=4)},
    "max_steps": lambda job: {"schedule": replace(job.schedule, max_steps=40)},
    "lr_scheduler_kwargs": lambda job: {"schedule": Schedule("polynomial", 3, 20, {"power": 2.0, "lr_end": 0.0})},
    "seed": lambda job: {"seed": 1},
    "accumulation": lambda job: {"order": job.order.reshape(10, 2, 2)},
    "batch": lambda job: {"order": job.order.reshape(10, 1, 4)},
    "length": lambda job: {"row_length": 40},
    "pad_token_id": lambda job: {"pad_token_id": 1},
    "gradient_checkpointing": lambda job: {"gradient_checkpointing": True},
    "packed": lambda job: {"packed": True},
    "dtype": lambda job: {"dtype": "float16"},
    "overrides": lambda job: {"overrides": {"model": {"model_config": {"rms_norm_eps": 1e-3}}}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_enters_the_graph_is_in_the_key(job: TrainJob, name: str) -> None:
    assert key(replace(job, **CHANGES[name](job))) != key(job)


def test_shapes_and_switches_are_in_the_key(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key(job, [[2, 33], [2, 33], [2, 7]]) != key(job)
    before = key(job)
    monkeypatch.setenv("MS_DEV_JIT_SYNTAX_LEVEL", "0")
    assert key(job) != before


def test_places_and_what_is_done_between_steps_are_not(job: TrainJob, tmp_path: Path) -> None:
    """So that a run that goes on from a checkpoint has the graph of its beginning."""
    moved = replace(job, rows=tmp_path / "rows", initial_adapter=tmp_path / "initial", output_dir=tmp_path / "out")
    resumed = replace(moved, resume_from=tmp_path / "checkpoint-5", steps_done=5, order=job.order[::-1])
    assert key(replace(resumed, checkpoint_steps=(4, 8), snapshot_steps=(2,))) == key(job)


def runs(folder: Path) -> list[dict[str, list[Any]]]:
    """One run of a job in a process, then two of it with other weights in another: their numbers, what was told."""
    told = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ | {"TWINTUNE_CACHE": str(folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[3])},
        check=True,
        capture_output=True,
        text=True,
    )
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith('{"told"')]


@pytest.mark.slow
def test_losses_with_a_kept_graph_are_those_without(tmp_path: Path) -> None:
    """The graph was kept by a job with other weights and another adapter, in a cache that was full."""
    unused = tmp_path / "cache" / "graphs" / "unused"
    unused.mkdir(parents=True)
    with (unused / "large").open("wb") as file:
        file.truncate(MOST + 1)  # takes no place on the disk
    kept, loaded = runs(tmp_path)
    assert kept["told"][0].endswith("; 1 least recently used removed, as they took more than 1 GiB)")
    (graph,) = (tmp_path / "cache" / "graphs").iterdir()
    assert f"kept for the next run like it in {graph}" in kept["told"][0]
    assert loaded["told"][0] == f"loading the graph that a run like this one compiled, {graph}"
    assert "not kept" in loaded["told"][1]  # so that this run compiled its own
    assert loaded["numbers"][0] == loaded["numbers"][1]
    assert loaded["numbers"][0] != kept["numbers"][0]


def train_often(folder: Path, seed: int, times: int) -> dict[str, list[Any]]:
    """Train a job whose weights, base and adapter, depend on `seed`."""
    told, numbers = [], []
    for time in range(times):
        here = folder / str(time)
        model = save_tiny_model(here / "model", "llama", num_hidden_layers=1)
        job = make_job(here, model=model, steps=3, lora=LORA)
        base = job.model / "model.safetensors"
        save_file({name: tensor * (1 + seed / 10) for name, tensor in load_file(base).items()}, base, {"format": "pt"})
        job = replace(job, initial_adapter=here / "drawn")
        write_initial_adapter(job.initial_adapter, job.model, read_model_config(job.model), LORA, seed)
        job.output_dir.mkdir()
        recorder = Recorder()
        train(job, recorder)
        told.append(recorder.texts[-1])
        numbers.append([(step.loss, step.grad_norm, step.learning_rate) for step in recorder.steps])
    return {"told": told, "numbers": numbers}


if __name__ == "__main__":
    for seed, times in ((3, 1), (4, 2)):  # forks: the frameworks are imported once
        child = os.fork()
        if not child:
            print(json.dumps(train_often(Path(sys.argv[1]) / str(seed), seed, times)), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
