"""Rows as an Arrow IPC stream, which datasets.Dataset.from_file maps into memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import new_file
from twintune.converters.packing import LENGTHS
from twintune.converters.rows import COLUMNS, Row
from twintune.errors import UserError

ROWS_A_BATCH = 1000


def write_rows(rows: Iterable[Row], path: Path, *, packed: bool = False) -> None:
    """Write columns input_ids and labels, each a list of int32, a record batch for every thousand rows.

    Args:
        rows: taken one batch at a time, so that they need not fit into memory.
        path: the file, whole or absent.
        packed: whether rows hold several conversations; their lengths are a third column then.
    """
    import pyarrow as pa

    names = (*COLUMNS, LENGTHS) if packed else COLUMNS
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in names])
    iterator = iter(rows)
    with (
        new_file(path) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as stream,
    ):
        while batch := list(islice(iterator, ROWS_A_BATCH)):
            columns = [pa.array([getattr(row, name) for row in batch], pa.list_(pa.int32())) for name in names]
            stream.write_batch(pa.record_batch(columns, schema=schema))


def join_files(files: Sequence[Path], path: Path) -> None:
    """Write the rows of several files of the same columns, in their order, to one; at least one row must be there.

    Raises:
        UserError: if one of them is no Arrow stream.
    """
    import pyarrow as pa

    batches = chain.from_iterable(map(_batches, files))
    first = next(batches)
    with (
        new_file(path) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_stream(sink, first.schema) as stream,
    ):
        for batch in chain([first], batches):
            stream.write_batch(batch)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file written by write_rows.

    Raises:
        UserError: if it is no Arrow stream.
    """
    for batch in _batches(path):
        for input_ids, labels, *lengths in zip(*batch.columns, strict=True):
            packed = tuple(_vector(lengths[0]).tolist()) if lengths else ()
            yield Row(_vector(input_ids), _vector(labels), lengths=packed)


def count_rows(path: Path) -> int:
    """The number of rows in a file written by write_rows.

    Raises:
        UserError: if it is no Arrow stream.
    """
    return sum(batch.num_rows for batch in _batches(path))


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            yield from stream
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: the rows must be an Arrow stream, got: {error}; prepare them again") from None


def _vector(values: Any) -> NDArray[np.int32]:
    return np.asarray(values.values.to_numpy(), dtype=np.int32)
