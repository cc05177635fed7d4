"""What rounding alone makes of a real model of 30 layers, beside the tiny ones of derive_tolerances.py.

    OMP_NUM_THREADS=1 python -m scripts.derive_depth        # from the root of the checkout

SmolLM2-135M-Instruct, its weights rounded at random to each dtype (for float32 moved by half a unit in the last place
at most), on PyTorch; forward and gradients before training. The spreads go into tests/golden/tolerances.json as `real`.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from scripts.derive_tolerances import (
    DTYPES,
    GOLDEN,
    LORA,
    SMALL,
    Arrays,
    logits_apart,
    look,
    make_job,
    rounded_at_random,
    worst,
)
from twintune.artifacts import write_json
from twintune.backends import Forward, load_backend
from twintune.backends.job import TrainJob
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.converters.weights import find_weights
from twintune.models import embedded_model, read_model_config
from twintune.parity.pair import largest, relative_largest, relative_norm
from twintune.parity.probe_adapters import with_random_b

REPEATS = 4
Measured = tuple[list[Forward], NDArray[np.float64], Arrays]


def write_rounded(folder: Path, source: Path, dtype: str, seed: int) -> None:
    """Write the model with its weights rounded at random."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    draw = np.random.default_rng((seed, 7))
    weights = {}
    for name, stored in find_weights(source, read_model_config(source)).tensors.items():
        weight = stored.read().astype(np.float64)
        if dtype == "float32":  # it is exact there: move it, so that there is something to round
            weight *= 1 + draw.uniform(-0.5, 0.5, weight.shape) * 2.0**-23
        weights[name] = rounded_at_random(weight, DTYPES[dtype], draw)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def measure(job: TrainJob) -> Measured:
    """Forward without and with an adapter, losses of rows, gradients."""
    probe = load_backend("cuda").open_probe(job)
    initial = probe.adapter()
    forward = look(probe, initial) + look(probe, with_random_b(initial, seed=0))
    step = probe.gradients(job.order[0])
    return forward, step.row_losses / step.row_tokens, step.gradients


def differences(one: Measured, other: Measured) -> Mapping[str, float]:
    """How far two repeats are apart."""
    forwards = list(zip(one[0], other[0], strict=True))
    return {
        "logits": logits_apart(one[0], other[0]),
        "hidden": max(relative_largest(a.hidden[name], b.hidden[name]) for a, b in forwards for name in a.hidden),
        "row_loss": largest(one[1], other[1]),
        "gradient": worst(relative_norm, one[2], other[2]),
    }


def main() -> None:
    """Measure every dtype and write the golden file."""
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    model = embedded_model()
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as workshop:
            folder = Path(workshop)
            adapter = make_initial_adapter(read_model_config(model), LORA, seed=3)
            write_adapter(folder / "adapter", adapter, LORA, "model")
            tiny = make_job(folder / "tiny", SMALL, dtype, seed=0)  # its rows suit every vocabulary
            repeats = []
            for seed in range(REPEATS):
                write_rounded(folder / str(seed), model, dtype, seed)
                job = replace(tiny, model=folder / str(seed), initial_adapter=folder / "adapter")
                repeats.append(measure(job))
                shutil.rmtree(folder / str(seed))
        found = [differences(*pair) for pair in itertools.combinations(repeats, 2)]
        spread = {name: float(f"{max(each[name] for each in found):.3g}") for name in found[0]}
        golden.setdefault("real", {})[f"cuda, {dtype}, SmolLM2-135M-Instruct, 30 layers of 576"] = spread
        print(dtype, spread, flush=True)
    write_json(GOLDEN, golden)


if __name__ == "__main__":
    main()
