"""Running the YAMLs of yamls/ as their users do, with smaller sizes, on every backend that is installed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twintune.backends import missing_packages
from twintune.cli import main

YAMLS = Path(__file__).parents[1] / "yamls"
BACKENDS = [name for name in ("cuda", "ascend") if not missing_packages(name)]
SMALL = [
    "train.per_device_train_batch_size=2",
    "train.gradient_accumulation_steps=2",
    "train.max_steps=2",
]
LOSS = 1e-5  # absolute, between the backends, in float32


def run(*arguments: str) -> None:
    """`twintune ARGUMENTS...`, which must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["twintune", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
    assert done.value.code in (None, 0)


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train_everywhere(recipe: Path, work: Path, *overrides: str, loss: float = LOSS) -> dict[str, Path]:
    """Train on every backend; their losses, of training and validation, must agree. Gives the run folders."""
    runs = {}
    for backend in BACKENDS:
        runs[backend] = work / f"{recipe.stem}-{backend}"
        device = ("--backend", backend, "--device", "cpu")
        run("train", str(recipe), *SMALL, *overrides, *device, "--output-dir", str(runs[backend]))
        assert (runs[backend] / "adapter" / "adapter_model.safetensors").is_file()
    first, last = (list(runs.values())[place] for place in (0, -1))
    assert len(lines_of(first / "log.jsonl")) == 2
    for name in ("log.jsonl", "evaluation.jsonl"):
        if (first / name).exists():
            one, other = ([line["loss"] for line in lines_of(folder / name)] for folder in (first, last))
            np.testing.assert_allclose(one, other, rtol=0, atol=loss)
    return runs
