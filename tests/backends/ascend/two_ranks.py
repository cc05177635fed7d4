"""Trains a job as one of the workers that msrun starts: `python -m tests.backends.ascend.two_ranks JOB.pickle`."""

import json
import os
import pickle
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tests.jobs import Recorder
from twintune.backends import load_backend
from twintune.backends.job import TrainJob
from twintune.ranks import find_launched


def main() -> None:
    """Train, and write what was told as JSON beside the job."""
    launched, backend = find_launched(os.environ), load_backend("ascend")
    backend.join(launched.rank)
    if launched.is_scheduler:
        return
    job: TrainJob = pickle.loads(Path(sys.argv[1]).read_bytes())  # noqa: S301  written by the test
    number = launched.rank.number
    watcher = Recorder()
    folder = job.output_dir.with_name(f"rank-{number}")
    backend.train(replace(job, rank=launched.rank, output_dir=folder), watcher)
    told = {
        "steps": [asdict(one) for one in watcher.steps],
        "evaluations": [asdict(one) for one in watcher.evaluations],
    }
    folder.with_suffix(".json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
