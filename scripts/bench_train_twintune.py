"""One run of twintune for scripts/bench_train.py.

    python -m scripts.bench_train_twintune JOB.json

Trains through a backend as `twintune train` does, and prints what bench_train_peer.py prints.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from twintune.backends import load_backend
from twintune.backends.job import Lora, Optimizer, Schedule, Step, TrainJob
from twintune.recipe_sections import LINEAR_LAYERS
from twintune.watchers import QuietWatcher


class Timed(QuietWatcher):
    """Seconds, CPU seconds, trained tokens and loss of each step; the first one has the loading in its CPU seconds."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.cpu_seconds: list[float] = []
        self._began = time.process_time()

    def step(self, step: Step) -> None:
        """Keep it."""
        now = time.process_time()
        self.steps.append(step)
        self.cpu_seconds.append(now - self._began)
        self._began = now


def make_job(job: dict[str, Any]) -> TrainJob:
    """The seam's job."""
    steps, batch = job["steps"], job["batch"]
    return TrainJob(
        model=Path(job["model"]),
        rows=Path(job["folder"]),
        order=np.arange(steps * batch).reshape(steps, 1, batch),
        row_length=job["length"],
        pad_token_id=0,
        initial_adapter=Path(job["adapter"]),
        output_dir=Path(job["output_dir"]),
        adapter=Lora(8, 16, job["lora_dropout"], LINEAR_LAYERS),
        optimizer=Optimizer(1e-4, 0.0, 0.9, 0.999, 1e-8, 1.0),
        schedule=Schedule("constant", 0, steps),
        device=job["device"],
        dtype=job["dtype"],
        seed=0,
        overrides={},
        packed=job["packed"],
        gradient_checkpointing=job["gradient_checkpointing"],
    )


def main() -> None:
    """Train, and tell what it took."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job = make_job(settings)
    backend, timed = load_backend(settings["backend"]), Timed()
    backend.train(job, timed)
    peak = backend.peak_memory(job.device)
    told = {
        "tokens": [step.tokens for step in timed.steps],
        "seconds": [step.seconds for step in timed.steps],
        "cpu_seconds": timed.cpu_seconds,
        "losses": [step.loss for step in timed.steps],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak is None else peak,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
