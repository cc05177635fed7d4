"""Both backends on the same job, once for each family: a graph compile costs seconds."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs import Recorder, make_job, make_packed_job
from tests.tiny_models import save_tiny_model
from twintune.backends import AdamW, Step, TrainJob, load_backend, missing_packages

MISSING = [*missing_packages("ascend"), *missing_packages("cuda")]
STEPS = 50
PLAIN = ("llama-1", "llama-3", "qwen2-1", "qwen2-3", "mistral-1", "mistral-3")
PACKED = ("llama-1-packed", "qwen2-3-packed")


@dataclass(frozen=True)
class Twins:
    """One job done by both backends."""

    job: TrainJob
    steps: dict[str, list[Step]]
    adapters: dict[str, Path]


@pytest.fixture(scope="session")
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """50 steps of one of PLAIN or PACKED: a family (tied and with q, k, v bias for qwen2) and its accumulation."""
    if MISSING:
        pytest.skip(f"needs both backends, without {', '.join(MISSING)}")
    family, accumulation, *packed = request.param.split("-")
    make = make_packed_job if packed else make_job
    folder = tmp_path_factory.mktemp(request.param)
    steps, adapters = {}, {}
    for name in ("cuda", "ascend"):
        job = make(
            folder / name,
            accumulation=int(accumulation),
            steps=STEPS,
            model=save_tiny_model(folder / name / "model", family, initializer_range=0.1),
            optimizer=AdamW(2e-3, 0.01, 0.9, 0.999, 1e-8, 1.0),
        )
        job.output_dir.mkdir()
        recorder = Recorder()
        load_backend(name).train(job, recorder)
        steps[name], adapters[name] = recorder.steps, job.output_dir / "adapter"
    return Twins(job, steps, adapters)
