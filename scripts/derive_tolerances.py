"""How far two runs of one job part when nothing but rounding differs: where the limits of parity come from.

    OMP_NUM_THREADS=1 python scripts/derive_tolerances.py [cuda:bfloat16 cuda:float16 ascend:float16 ...]

A tiny random LLaMA has weights drawn once in float64. Each repeat rounds every weight to the dtype at random, up or
down to a neighbour, the nearer the likelier (stochastic rounding: Croci et al. 2022, doi:10.1098/rsos.211631), then
trains and is measured through the backend as `twintune parity record` does it. All pairs of repeats are compared as
`twintune parity compare` would; the largest difference of each measure is its spread. Where both backends compute in
a dtype, repeats that have the very same weights are compared between them: what two implementations really differ by.
Results go into tests/golden/tolerances.json; cases not run stay.
"""

import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from safetensors.numpy import save_file

from twintune.artifacts import write_json
from twintune.backends import Forward, Probe, load_backend, missing_packages
from twintune.backends.job import Lora, Optimizer, Schedule, Step, TrainJob
from twintune.converters import arrow, mindrecord
from twintune.converters.adapter import make_initial_adapter, read_adapter, write_adapter
from twintune.converters.merged_weights import merged_weights
from twintune.converters.names import base_names, linear_shapes
from twintune.converters.rows import Row
from twintune.converters.weights import find_weights
from twintune.models import read_model_config
from twintune.parity.gradient_rungs import cosine
from twintune.parity.pair import largest, relative_largest, relative_norm
from twintune.parity.probe_adapters import with_random_b, without_b
from twintune.recipe_sections import LINEAR_LAYERS
from twintune.training import versions
from twintune.watchers import QuietWatcher

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "tolerances.json"
REPEATS, STEPS = 8, 50
ROWS, MEASURED_ROWS = 24, 4
LENGTH, VOCABULARY = 24, 128  # tokens of the longest row, ids
LORA = Lora(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=LINEAR_LAYERS)
SMALL = (2, 64, 1e-3)  # layers, hidden size, peak learning rate
DEEP, WIDE, FAST = (8, 64, 1e-3), (2, 256, 1e-3), (2, 64, 1e-2)
CASES: Mapping[str, tuple[tuple[int, int, float], ...]] = {
    "cuda:float16": (SMALL, DEEP),
    "ascend:float16": (SMALL,),
    "cuda:float32": (SMALL, DEEP, FAST),
    "ascend:float32": (SMALL,),
    "cuda:bfloat16": (SMALL, DEEP, WIDE, FAST),
}
DTYPES: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": bfloat16}
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Record:
    """What one repeat computed: as a bundle holds it."""

    forward: list[Forward]  # without an adapter's effect, then with one
    row_losses: NDArray[np.float64]  # each row's mean
    gradients: Arrays
    steps: list[Step]
    one_step: Arrays  # the change of each matrix
    adapter: Arrays
    same_adapter: list[Forward]  # with an adapter that all repeats share, far from zero
    merged: float  # relative difference of logits


class Steps(QuietWatcher):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.kept: list[Step] = []

    def step(self, step: Step) -> None:
        """Keep it."""
        self.kept.append(step)


def draw_weights(config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Every base weight in float64: linear layers that keep a vector's size about, norms about 1."""
    draw = np.random.default_rng(0)
    linear = {f"{name}.weight": shape for name, shape in linear_shapes(config, LINEAR_LAYERS).items()}
    tables = dict.fromkeys(("model.embed_tokens", "lm_head"), (config["vocab_size"], config["hidden_size"]))
    shapes = linear | {f"{name}.weight": shape for name, shape in tables.items()}
    for name in base_names(config):
        if name in shapes:
            yield name, draw.normal(0, 1.6 / math.sqrt(config["hidden_size"]), list(shapes[name]))
        else:
            yield name, draw.normal(1, 0.1, [config["hidden_size"]])


def rounded_at_random(array: NDArray[np.float64], dtype: Any, draw: np.random.Generator) -> NDArray[np.float32]:
    """Each number as one of its two neighbours in a dtype, the nearer the likelier; float32 holds them exactly."""
    nearest = array.astype(dtype)
    error = array - nearest.astype(np.float64)
    other = np.nextafter(nearest, np.where(error > 0, np.inf, -np.inf).astype(dtype))
    gap = np.abs(other.astype(np.float64) - nearest.astype(np.float64))
    chosen = np.where(draw.random(array.shape) < np.abs(error) / gap, other, nearest)
    return chosen.astype(np.float32)


def make_job(folder: Path, setting: tuple[int, int, float], dtype: str, seed: int) -> TrainJob:
    """The job of one repeat: everything the same but how the base weights are rounded."""
    layers, width, rate = setting
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width * 7 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
    }
    draw = np.random.default_rng((seed, 7))
    weights = {name: rounded_at_random(array, DTYPES[dtype], draw) for name, array in draw_weights(config)}
    model = folder / "model"
    model.mkdir(parents=True)
    write_json(model / "config.json", config)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    write_adapter(folder / "initial", make_initial_adapter(config, LORA, seed=3), LORA, "model")
    rows = make_rows()
    (folder / "rows").mkdir()
    (folder / "run").mkdir()
    arrow.write_rows(rows, folder / "rows" / "rows.arrow")
    if not missing_packages("ascend"):
        mindrecord.write_rows(rows, folder / "rows" / "rows.mindrecord")
    return TrainJob(
        model=model,
        rows=folder / "rows",
        order=np.random.default_rng(2).integers(0, ROWS, size=(STEPS, 1, 2)),
        row_length=LENGTH,
        pad_token_id=0,
        initial_adapter=folder / "initial",
        output_dir=folder / "run",
        adapter=LORA,
        optimizer=Optimizer(rate, 0.01, 0.9, 0.999, 1e-8, 1.0),
        schedule=Schedule("cosine", 3, STEPS),
        device="cpu",
        dtype=dtype,
        seed=0,
        overrides={},
        snapshot_steps=(2,),  # the first whose learning rate is not 0
    )


def make_rows() -> list[Row]:
    """Ragged rows of random ids whose first tokens are not trained."""
    draw = np.random.default_rng(1)
    rows = []
    for _ in range(ROWS):
        ids = draw.integers(3, VOCABULARY, size=draw.integers(6, LENGTH + 1)).astype(np.int32)
        labels = ids.copy()
        labels[: draw.integers(1, 5)] = -100
        rows.append(Row(ids, labels))
    return rows


def record(backend: str, job: TrainJob) -> Record:
    """Train a job and measure its network."""
    framework, watcher = load_backend(backend), Steps()
    framework.train(job, watcher)
    _, one_step = read_adapter(job.snapshot(job.snapshot_steps[0]))
    _, final = read_adapter(job.output_dir / "adapter")
    probe = framework.open_probe(job)
    initial = probe.adapter()
    forward = look(probe, initial) + look(probe, with_random_b(initial, seed=0))
    gradients = probe.gradients(job.order[0])
    shared = look(probe, {name: 2 * array for name, array in with_random_b(initial, seed=1).items()})
    trained = look(probe, final)
    probe.put_base(merged_weights(find_weights(job.model, read_model_config(job.model)), LORA, final, "float32"))
    return Record(
        forward=forward,
        row_losses=gradients.row_losses / gradients.row_tokens,
        gradients=gradients.gradients,
        steps=watcher.kept,
        one_step={name: array - initial[name] for name, array in one_step.items()},
        adapter=final,
        same_adapter=shared,
        merged=logits_apart(trained, look(probe, without_b(final))),
    )


def look(probe: Probe, adapter: Arrays) -> list[Forward]:
    """The forward of some rows with an adapter."""
    probe.put_adapter(adapter)
    return probe.forward([row.input_ids.tolist() for row in make_rows()[:MEASURED_ROWS]])


def differences(one: Record, other: Record) -> dict[str, float]:
    """How far two records are apart, by measure; defined as the rungs of twintune.parity define them."""
    forwards = list(zip(one.forward, other.forward, strict=True))
    losses = np.array([b.loss - a.loss for a, b in zip(one.steps, other.steps, strict=True)])
    norms = [abs(b.grad_norm / a.grad_norm - 1) for a, b in zip(one.steps, other.steps, strict=True)]
    return {
        "logits": logits_apart(one.forward, other.forward),
        "hidden": max(relative_largest(a.hidden[name], b.hidden[name]) for a, b in forwards for name in a.hidden),
        "row_loss": largest(one.row_losses, other.row_losses),
        "gradient": worst(relative_norm, one.gradients, other.gradients),
        "gradient_cosine": worst(lambda a, b: 1 - cosine(a, b), one.gradients, other.gradients),
        "one_step": worst(largest, one.one_step, other.one_step) / one.steps[1].learning_rate,
        "update": worst(relative_norm, one.one_step, other.one_step),
        "loss": float(np.abs(losses).max()),
        "grad_norm": max(norms),
        "mean_signed_residual": abs(float(losses.mean())),
        "adapter": worst(largest, one.adapter, other.adapter) / max(step.learning_rate for step in one.steps),
        "cross_logits": logits_apart(one.same_adapter, other.same_adapter),
        "merged_logits": max(one.merged, other.merged),
    }


def worst(measure: Any, one: Arrays, other: Arrays) -> float:
    """The largest of a measure over all matrices."""
    return max(float(measure(one[name], other[name])) for name in one)


def logits_apart(one: list[Forward], other: list[Forward]) -> float:
    """The largest relative difference of logits over all rows."""
    return max(relative_largest(a.logits, b.logits) for a, b in zip(one, other, strict=True))


def spread(pairs: Iterable[tuple[Record, Record]]) -> dict[str, float]:
    """The largest difference of any pair, by measure."""
    found = [differences(one, other) for one, other in pairs]
    return {name: float(f"{max(each[name] for each in found):.3g}") for name in found[0]}


def repeats(backend: str, dtype: str, setting: tuple[int, int, float]) -> list[Record]:
    """The records of all repeats of a case."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = (make_job(Path(folder, str(seed)), setting, dtype, seed) for seed in range(REPEATS))
        return [record(backend, job) for job in jobs]


def run(cases: Iterable[str], golden: dict[str, Any]) -> Iterator[str]:
    """Lay the spreads of some cases into the golden numbers, giving the name of each as it is done."""
    met: dict[str, dict[str, list[Record]]] = {}
    for case in cases:
        backend, dtype = case.split(":")
        for setting in CASES[case]:
            records = repeats(backend, dtype, setting)
            what = "{}, {} layers of {}, learning rate {}".format(dtype, *setting)
            golden["spreads"][f"{backend}, {what}"] = spread(itertools.combinations(records, 2))
            sides = met.setdefault(what, {})
            sides[backend] = records
            if len(sides) == 2:
                golden["between"][what] = spread(zip(sides["cuda"], sides["ascend"], strict=True))
            yield f"{backend}, {what}"


def main(cases: list[str]) -> None:
    """Run cases, all if none is named, and write the golden file after each."""
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"spreads": {}, "between": {}}
    golden["made_by"] = {"repeats": REPEATS, "steps": STEPS, "versions": versions()}
    for name in run(cases or CASES, golden):
        print(name, golden["spreads"][name], flush=True)
        write_json(GOLDEN, dict(sorted(golden.items(), reverse=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
