"""What one device and what two ranks tell of the same jobs."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import Recorder
from twintune.backends import load_backend
from twintune.backends.job import TrainJob

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5  # float32: sums in another order


def alone(job: TrainJob) -> dict[str, Any]:
    """The steps and evaluations of one device."""
    recorder = Recorder()
    load_backend("cuda").train(job, recorder)
    return {"steps": [vars(step) for step in recorder.steps], "evaluations": [vars(e) for e in recorder.evaluations]}


def told_by_two(jobs: Mapping[str, TrainJob], folder: Path, **environment: str) -> dict[str, list[Any]]:
    """What both ranks were told, by job; None where a rank was killed or not there."""
    file = folder / "jobs.pickle"
    file.write_bytes(pickle.dumps(dict(jobs)))
    subprocess.run(
        [sys.executable, "-m", "tests.backends.cuda.two_ranks", str(file)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=True,
        timeout=300,
    )
    told = {}
    for name, job in jobs.items():
        files = [job.output_dir.with_name(f"{name}-{number}.json") for number in range(2)]
        told[name] = [json.loads(file.read_text()) if file.exists() else None for file in files]
    return told


def assert_same_figures(found: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    """Steps from `first` on have the loss, gradient norm, learning rate and tokens of the expected ones."""
    assert "error" not in found
    for figure in ("loss", "grad_norm", "learning_rate", "tokens"):
        series = [step[figure] for step in found["steps"]]
        assert series == pytest.approx([step[figure] for step in expected["steps"][first:]], abs=TOLERANCE), figure
