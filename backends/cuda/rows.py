"""Prepared rows from Arrow to the tensors that a model takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.cuda.loss import pad_right
from twintune.backends.cuda.packed import in_one_line
from twintune.backends.job import TrainJob
from twintune.converters.rows import Row
from twintune.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the network together, and what it takes of them: see model_inputs."""

    rows: list[Row]
    inputs: tuple[Any, ...]


def open_rows(path: Path) -> Any:
    """The table of prepared rows, memory mapped."""
    import pyarrow

    if not path.is_file():
        raise UserError(f"{path}: it must be there for --backend cuda, got no such file; run twintune prepare")
    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()


def read_row(table: Any, number: int) -> Row:
    """A row by its number."""
    input_ids, labels, *lengths = (column[number].values.to_numpy() for column in table.columns)
    return Row(input_ids, labels, lengths=tuple(lengths[0].tolist()) if lengths else ())


def model_inputs(job: TrainJob, batch: list[Row]) -> tuple[Any, ...]:
    """input_ids and labels, int64 on the job's device, and where the conversations of packed rows end."""
    if job.packed:
        return in_one_line(batch, job.device)
    return pad_right(batch, job.pad_token_id, job.device)


def read_micro_batches(job: TrainJob, table: Any, numbers: NDArray[np.int64]) -> list[MicroBatch]:
    """The rows with these numbers, int64 [..., batch], by micro-batch, on the job's device or on their way to it."""
    batches = [[read_row(table, int(row)) for row in batch] for batch in numbers.reshape(-1, numbers.shape[-1])]
    return [MicroBatch(batch, model_inputs(job, batch)) for batch in batches]
