import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import missing_packages
from twintune.recipe import load_recipe
from twintune.resuming import go_on
from twintune.training import run_training
from twintune.training_plan import decide

pytestmark = [
    pytest.mark.cuda_alone,
    pytest.mark.skipif(bool(missing_packages("cuda")), reason="trains with torch"),
]

SETTINGS = ["train.max_steps=40", "train.save_steps=2", "lora.lora_dropout=0.1", "backend.name=cuda"]
ON_TWO = ["train.per_device_train_batch_size=1", "--nproc", "2"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smallest_recipe(tmp_path_factory.mktemp("ranks") / "work").parent


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "twintune", "train", "recipe.yaml", *arguments]


def kill_rank_1(folder: Path, run: "subprocess.Popen[str]") -> str:
    """Kill rank 1 once a checkpoint is there; what the run printed on its standard error."""
    assert run.stdout is not None
    line = "a line"
    found = None
    while line and not found:
        line = run.stdout.readline()
        found = re.match(r"rank: +1 of 2 in process (\d+), started by torchrun", line)
    assert found, run.communicate(timeout=60)
    process = int(found[1])
    while not (folder / "checkpoint-2" / "adapter_model.safetensors").exists() and run.poll() is None:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return run.communicate(timeout=60)[1]


def series(folder: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"], line["tokens"]) for line in lines]


@pytest.mark.slow
def test_a_killed_rank_stops_all_and_one_device_goes_on(workplace: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    arguments = command(*SETTINGS, *ON_TWO, "--output-dir", "two")
    with subprocess.Popen(
        arguments, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        told = kill_rank_1(workplace / "two", run)
    assert run.returncode == 2
    assert re.search(
        r"twintune: rank 1: process \d+ must run to its end, got SIGKILL; the other ranks were stopped; "
        r"go on from the newest checkpoint with --resume\n$",
        told,
    )
    resumed, sentence = go_on(decide(load_recipe(workplace / "recipe.yaml", SETTINGS), workplace / "two"))
    assert re.match(r"goes on after step \d+ of 40, from checkpoint-\d+, which cuda wrote", sentence)
    run_training(resumed)
    unbroken: Any = decide(load_recipe(workplace / "recipe.yaml", SETTINGS), workplace / "one")
    run_training(unbroken)
    for found, expected in zip(series(workplace / "two"), series(workplace / "one"), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)  # float32: sums in another order


def test_numbers_of_machines_without_processes_are_refused(workplace: Path) -> None:
    run = subprocess.run(
        command("--output-dir", "out", "--nnodes", "2"), cwd=workplace, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == (
        "twintune: command line: --nproc must be given with --nnodes, --node-rank or --master, got nothing\n"
    )
