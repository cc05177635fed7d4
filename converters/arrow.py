"""Rows as an Arrow IPC stream, which datasets.Dataset.from_file maps into memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twintune.artifacts import new_file
from twintune.converters.rows import COLUMNS, Row
from twintune.errors import UserError

ROWS_A_BATCH = 1000


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write columns input_ids and labels, each a list of int32, a record batch for every thousand rows."""
    import pyarrow as pa

    schema = pa.schema([(column, pa.list_(pa.int32())) for column in COLUMNS])
    with (
        new_file(path) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as stream,
    ):
        for start in range(0, len(rows), ROWS_A_BATCH):
            batch = rows[start : start + ROWS_A_BATCH]
            columns = [pa.array([getattr(row, column) for row in batch], pa.list_(pa.int32())) for column in COLUMNS]
            stream.write_batch(pa.record_batch(columns, schema=schema))


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file written by write_rows.

    Raises:
        UserError: if it is no Arrow stream.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                for input_ids, labels in zip(*(batch.column(column) for column in COLUMNS), strict=True):
                    yield Row(_vector(input_ids), _vector(labels))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: the rows must be an Arrow stream, got: {error}; prepare them again") from None


def count_rows(path: Path) -> int:
    """The number of rows in a file written by write_rows.

    Raises:
        UserError: if it is no Arrow stream.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            return sum(batch.num_rows for batch in stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: the rows must be an Arrow stream, got: {error}; prepare them again") from None


def _vector(values: object) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    return np.asarray(values.values.to_numpy(), dtype=np.int32)  # type: ignore[attr-defined]
