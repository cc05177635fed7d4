"""The memory model against what PyTorch's allocator counts, on models small enough for a few seconds."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.script_modules import import_script
from twintune.memory import LOSS_CHUNK

pytest.importorskip("torch", reason="trains on cuda")
pytestmark = pytest.mark.cuda_alone

SMALL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "vocab_size": 1024}
# Each is of another part of the model for the most.
CASES: dict[str, dict[str, Any]] = {
    "LLaMA, 4 layers of LoRA": {"rows": 8, "length": 64},  # activations
    "7 layers of LoRA": {"rows": 4, "length": 64},
    "Phi": {"rows": 4, "length": 64},
    "rows of 512, recomputed": {"rows": 4, "length": 64},  # one layer's
    "vocabulary of 65,536, 4 rows": {"rows": 4, "length": 48, "vocab_size": 16384},  # the loss
    "NF4, recomputed": {"rows": 1, "length": 16},  # weights
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_script("measure_memory")


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_what_the_allocator_counts(script: ModuleType, tmp_path: Path, name: str) -> None:
    sizes = dict(CASES[name])
    rows, length = sizes.pop("rows"), sizes.pop("length")
    case = script.CASES[name]
    case = replace(case, rows=rows, length=length, config=case.config | SMALL | sizes)
    job = script.make_job(case, tmp_path)
    assert script.estimate(case, job) == pytest.approx(script.peak_of_tensors(job), rel=0.15)


def test_the_loss_takes_as_many_positions_as_the_model_says() -> None:
    from twintune.backends.cuda.chunked_loss import CHUNK

    assert LOSS_CHUNK == CHUNK


def test_the_measure_sees_what_a_step_takes(script: ModuleType) -> None:
    import torch

    watcher = script.SecondStep()
    watcher.step(script.Step(1, 0.0, 0.0, 0.0, 1, 1.0))
    kept = [torch.zeros(1000, dtype=torch.float32), torch.zeros(500, dtype=torch.float32)]
    del kept[0]
    kept.append(torch.zeros(250, dtype=torch.float32))
    watcher.step(script.Step(2, 0.0, 0.0, 0.0, 1, 1.0))
    assert watcher.growth == 4 * 1500
