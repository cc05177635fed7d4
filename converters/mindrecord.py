"""Rows as MindRecord, MindSpore's own data file, with the `.db` index that it wants beside it.

Rows keep their own length: they are padded to the compiled length when they are read. MindSpore looks the
data file up by its base name beside the index, so the folder may be renamed and the file may not. Many rows
become several files, named as MindSpore's FileWriter names its shards; row numbers run on from one to the next.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.converters import arrow
from twintune.converters.packing import LENGTHS
from twintune.converters.rows import COLUMNS, Row
from twintune.errors import UserError

ROWS_A_CALL = 500  # twice as fast as one at a time
ROWS_A_SHARD = 16_384  # 268 MB of packed rows of 2,048 tokens
SMALLEST_PAGE = 32 * 1024  # bytes; MindSpore's own limits, its default makes no file smaller than 50 MB
LARGEST_PAGE = 256 * 1024 * 1024
HEADER = 64 * 1024  # bytes; lists the pages, so their number must stay small
MOST_PAGES = 32
BYTES_A_ROW = 64  # more than the sizes of its columns and its entry in the index of a page


def write_rows(rows: Iterable[Row], path: Path, lengths: Sequence[int] | NDArray[np.int64] | None = None) -> None:
    """Write columns input_ids and labels, int32 of any length, and for packed rows the lengths in them.

    Up to ROWS_A_SHARD rows become `path`, more become `path`0, `path`1 and so on, each with its index. The same
    rows always give the same bytes.

    Args:
        rows: a sequence, or with `lengths` an iterable that need not fit into memory.
        path: must not exist.
        lengths: tokens of each row, which decide the layout of a file before its first row is written.

    Raises:
        UserError: if rows are missing afterwards: MindSpore drops invalid ones with a mere warning.
    """
    if lengths is None:
        rows = list(rows)
        lengths = [len(row.input_ids) for row in rows]
    iterator = iter(rows)
    for file, start in _shards_to_write(path, len(lengths)):
        _write_file(islice(iterator, ROWS_A_SHARD), file, np.asarray(lengths[start : start + ROWS_A_SHARD]))
    _require_all(path, len(lengths))


def write_files(files: Sequence[Path], path: Path, lengths: NDArray[np.int64], processes: int) -> None:
    """Write the rows of Arrow files as write_rows writes them, several shards at a time in processes of their own.

    Raises:
        UserError: as write_rows.
    """
    shards_to_write = _shards_to_write(path, len(lengths))
    if min(len(shards_to_write), processes) == 1:
        write_rows(_rows_from(files, 0), path, lengths)
        return
    with ProcessPoolExecutor(min(len(shards_to_write), processes), get_context("spawn")) as pool:
        writing = [
            pool.submit(_write_shard, files, start, file, lengths[start : start + ROWS_A_SHARD])
            for file, start in shards_to_write
        ]
        for future in writing:
            future.result()
    _require_all(path, len(lengths))


def _write_shard(files: Sequence[Path], start: int, path: Path, lengths: NDArray[np.int64]) -> None:
    _write_file(islice(_rows_from(files, start), len(lengths)), path, lengths)


def _rows_from(files: Sequence[Path], start: int) -> Iterator[Row]:
    """The rows of Arrow files from the given one on; files that lie before it are not read."""
    for file in files:
        count = arrow.count_rows(file) if start else 0
        if count and count <= start:
            start -= count
            continue
        yield from islice(arrow.read_rows(file), start, None)
        start = 0


def _shards_to_write(path: Path, rows: int) -> list[tuple[Path, int]]:
    """The files of so many rows, and the first row of each."""
    return [(file, number * ROWS_A_SHARD) for number, file in enumerate(_shard_paths(path, -(-rows // ROWS_A_SHARD)))]


def _require_all(path: Path, rows: int) -> None:
    if (count := count_rows(path)) != rows:
        raise UserError(
            f"{path}: the file must hold all {rows} rows, got {count}: MindSpore dropped the others; its log says why"
        )


def _write_file(rows: Iterator[Row], path: Path, lengths: NDArray[np.int64]) -> None:
    first = next(rows)
    columns = (*COLUMNS, LENGTHS) if first.lengths else COLUMNS
    writer = _library().FileWriter(str(path), shard_num=1)
    writer.set_header_size(HEADER)
    writer.set_page_size(_page_size(lengths, 4 * len(columns)))
    writer.add_schema({column: {"type": "int32", "shape": [-1]} for column in columns}, "rows")
    rows = chain([first], rows)
    while batch := list(islice(rows, ROWS_A_CALL)):
        writer.write_raw_data([_record(row, columns) for row in batch])
    writer.commit()


def _library() -> Any:
    # MindSpore reads this when it is first imported: its warnings are not about the rows.
    os.environ.setdefault("GLOG_v", "3")
    from mindspore import mindrecord

    return mindrecord


def _record(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    values = {"input_ids": row.input_ids, "labels": row.labels, LENGTHS: np.array(row.lengths, np.int32)}
    return {column: values[column] for column in columns}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows that write_rows wrote to `path` or to its shards.

    Raises:
        UserError: if MindSpore cannot read them.
    """
    library = _library()
    for file in shards(path):
        try:
            reader = library.FileReader(str(file))
            try:
                for record in reader.get_next():
                    lengths = tuple(record[LENGTHS].tolist()) if LENGTHS in record else ()
                    yield Row(record["input_ids"], record["labels"], lengths=lengths)
            finally:
                reader.close()
        except RuntimeError as error:
            raise UserError(f"{file}: the rows must be a MindRecord, got: {error}; prepare them again") from None


def shards(path: Path) -> list[Path]:
    """The files that write_rows wrote: `path` alone, or its shards in the order of their rows.

    Raises:
        UserError: if there are none, or one of them is missing.
    """
    if path.exists():
        return [path]
    numbered = [file for file in path.parent.glob(f"{path.name}*") if file.name.removeprefix(path.name).isdigit()]
    expected = _shard_paths(path, len(numbered))
    if len(numbered) < 2 or sorted(numbered) != expected:
        found = ", ".join(file.name for file in sorted(numbered)) or "nothing"
        raise UserError(f"{path}: the rows must be one file or all its shards, got {found}; prepare them again")
    return expected


def index_of(path: Path) -> Path:
    """The index that MindSpore writes beside a MindRecord file."""
    return path.with_name(path.name + ".db")


def count_rows(path: Path) -> int:
    """The rows in the index of `path` or of its shards, which is what MindSpore reads by; it is not needed itself.

    Raises:
        UserError: if a shard or an index is missing or unreadable.
    """
    return sum(_indexed_rows(index_of(file)) for file in shards(path))


def _indexed_rows(index: Path) -> int:
    try:
        connection = sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True)
        try:
            (count,) = connection.execute("SELECT count(*) FROM INDEXES").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{index}: the index must be readable, got: {error}; prepare the rows again") from None
    return int(count)


def _shard_paths(path: Path, count: int) -> list[Path]:
    if count <= 1:
        return [path]
    digits = len(str(count - 1))
    return [path.with_name(f"{path.name}{number:0{digits}}") for number in range(count)]


def _page_size(lengths: NDArray[np.int64], bytes_a_token: int) -> int:
    """Bytes of a page: a power of two that holds the longest row twice over and keeps the pages few."""
    sizes = lengths * bytes_a_token + BYTES_A_ROW  # a conversation has a token at least
    wanted = max(SMALLEST_PAGE, 2 * int(sizes.max()), int(sizes.sum()) // MOST_PAGES)
    return min(1 << (wanted - 1).bit_length(), LARGEST_PAGE)
