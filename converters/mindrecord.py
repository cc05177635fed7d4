"""Rows as MindRecord, MindSpore's own data file, with the `.db` index that it wants beside it.

Rows keep their own length: they are padded to the compiled length when they are read. MindSpore looks the
data file up by its base name beside the index, so the folder may be renamed and the file may not.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from twintune.converters.rows import COLUMNS, Row
from twintune.errors import UserError

ROWS_A_CALL = 500  # twice as fast as one at a time
SMALLEST_PAGE = 32 * 1024  # bytes; MindSpore's own limits, its default makes no file smaller than 50 MB
LARGEST_PAGE = 256 * 1024 * 1024
HEADER = 64 * 1024  # bytes; lists the pages, so their number must stay small
MOST_PAGES = 32


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write columns input_ids and labels, int32 of any length, to `path` and `path`.db, which must not exist.

    Raises:
        UserError: if rows are missing afterwards: MindSpore drops invalid ones with a mere warning.
    """
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path), shard_num=1)
    writer.set_header_size(HEADER)
    writer.set_page_size(_page_size(rows))
    writer.add_schema({column: {"type": "int32", "shape": [-1]} for column in COLUMNS}, "rows")
    for start in range(0, len(rows), ROWS_A_CALL):
        batch = rows[start : start + ROWS_A_CALL]
        writer.write_raw_data([{column: getattr(row, column) for column in COLUMNS} for row in batch])
    writer.commit()
    if count_rows(path) != len(rows):
        raise UserError(
            f"{path}: the file must hold all {len(rows)} rows, got {count_rows(path)}: "
            "MindSpore dropped the others; its log says why"
        )


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file written by write_rows.

    Raises:
        UserError: if MindSpore cannot read it.
    """
    from mindspore.mindrecord import FileReader

    try:
        reader = FileReader(str(path))
        try:
            for record in reader.get_next():
                yield Row(record["input_ids"], record["labels"])
        finally:
            reader.close()
    except RuntimeError as error:
        raise UserError(f"{path}: the rows must be a MindRecord, got: {error}; prepare them again") from None


def index_of(path: Path) -> Path:
    """The index that MindSpore writes beside a MindRecord."""
    return path.with_name(path.name + ".db")


def count_rows(path: Path) -> int:
    """The number of rows in the index, which is what MindSpore reads by; MindSpore itself is not needed.

    Raises:
        UserError: if there is no readable index.
    """
    index = index_of(path)
    try:
        connection = sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True)
        try:
            (count,) = connection.execute("SELECT count(*) FROM INDEXES").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{index}: the index must be readable, got: {error}; prepare the rows again") from None
    return int(count)


def _page_size(rows: Sequence[Row]) -> int:
    """Bytes of a page: a power of two that holds the longest row twice over and keeps the pages few."""
    sizes = [row.input_ids.nbytes + row.labels.nbytes for row in rows]
    wanted = max(SMALLEST_PAGE, 2 * max(sizes), sum(sizes) // MOST_PAGES)
    return min(1 << (wanted - 1).bit_length(), LARGEST_PAGE)
