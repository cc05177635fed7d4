"""Small training jobs on tiny random models, for the tests of both backends."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.backends.job import Evaluation, Lora, Optimizer, Schedule, Step, TrainJob
from twintune.converters import arrow, mindrecord
from twintune.converters.adapter import write_initial_adapter
from twintune.converters.packing import pack_rows
from twintune.converters.rows import Row
from twintune.converters.target_modules import layers_of

ROWS = 24
STEPS = 20
PACKED_LENGTH = 64  # tokens of a packed row: three to ten conversations


@dataclass
class Recorder:
    """A Watcher that keeps what it is told."""

    texts: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)

    def status(self, text: str) -> None:
        self.texts.append(text)

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)

    def saved(self, step: int) -> None:
        self.checkpoints.append(step)


def random_rows(count: int = ROWS) -> list[tuple[list[int], list[int]]]:
    """Ragged rows whose beginning is masked, sometimes but for the very first token, which never counts."""
    draw = np.random.default_rng(1)
    rows = []
    for number in range(count):
        ids = draw.integers(3, 128, size=draw.integers(6, 25)).tolist()
        masked = int(draw.integers(1, 5))
        labels = [-100] * masked + ids[masked:]
        if number % 3 == 0:
            labels[0] = ids[0]
        rows.append((ids, labels))
    return rows


def write_rows(folder: Path, rows: list[tuple[list[int], list[int]]], name: str = "rows") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = pyarrow.list_(pyarrow.int32())
    columns = {"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]}
    table = pyarrow.table(columns, pyarrow.schema([(name, numbers) for name in columns]))
    with (
        pyarrow.OSFile(str(folder / f"{name}.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=7)  # several record batches, as datasets writes them
    if not missing_packages("ascend"):
        arrays = (Row(np.array(ids, np.int32), np.array(labels, np.int32)) for ids, labels in rows)
        mindrecord.write_rows(list(arrays), folder / f"{name}.mindrecord")
    return folder


def packed_rows(conversations: int = 96) -> list[Row]:
    """The rows of random_rows, several in one."""
    rows = [Row(np.array(ids, np.int32), np.array(labels, np.int32)) for ids, labels in random_rows(conversations)]
    return pack_rows(rows, PACKED_LENGTH)


def write_packed_rows(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True)
    arrow.write_rows(rows, folder / "rows.arrow", packed=True)
    if not missing_packages("ascend"):
        mindrecord.write_rows(rows, folder / "rows.mindrecord")
    return folder


def make_packed_job(folder: Path, family: str = "llama", accumulation: int = 1, **changes: Any) -> TrainJob:
    """make_job on packed rows: 2 * accumulation of them in a step."""
    rows = packed_rows()
    steps = changes.get("steps", STEPS)
    fields: dict[str, Any] = {
        "rows": write_packed_rows(folder / "rows", rows),
        "order": np.random.default_rng(2).integers(0, len(rows), size=(steps, accumulation, 2)),
        "row_length": PACKED_LENGTH,
        "packed": True,
    }
    return make_job(folder, family, accumulation, **(fields | changes))


def make_job(
    folder: Path, family: str = "llama", accumulation: int = 1, steps: int = STEPS, layers: int = 2, **changes: Any
) -> TrainJob:
    """A job of `steps` steps of 2 * accumulation rows in float32 on the CPU; `changes` are TrainJob's fields.

    One layer compiles in three quarters of the time on MindSpore.
    """
    model = changes.pop("model", None) or save_tiny_model(folder / "model", family, num_hidden_layers=layers)
    config = json.loads((model / "config.json").read_text())
    adapter = changes.pop("adapter", None) or changes.pop("lora", Lora(4, 8, 0.0, layers_of(config)))
    rows = changes.pop("rows", None) or write_rows(folder / "rows", random_rows())
    initial = folder / "initial"
    if "initial_adapter" not in changes:
        write_initial_adapter(initial, model, config, adapter, seed=3)
    order = np.random.default_rng(2).integers(0, ROWS, size=(steps, accumulation, 2))
    fields: dict[str, Any] = {
        "order": order,
        "row_length": 24,
        "pad_token_id": 0,
        "initial_adapter": initial,
        "output_dir": folder / "run",
        "optimizer": Optimizer(1e-2, 0.01, 0.9, 0.999, 1e-8, 1.0),
        "schedule": Schedule("cosine", 3, steps),
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "overrides": {},
    }
    return TrainJob(model=model, rows=rows, adapter=adapter, **(fields | changes))
