"""Records from tables: CSV with a header row, and parquet."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twintune.converters.faults import MOST_CHARACTERS, TOO_LONG, Fault, shown
from twintune.converters.text_window import TextWindow
from twintune.errors import UserError

BATCH_ROWS = 1024


def read_csv(path: Path, window: TextWindow) -> Iterator[dict[str, str] | Fault]:
    """The rows below the header, as texts by column name, or the Fault that a row has.

    Raises:
        UserError: for a header that does not name each column once, and with the line where quotes are
            wrong, since no later row can be found then.
    """
    csv.field_size_limit(MOST_CHARACTERS)
    above = window.place(window.position)[0] - 1  # lines
    reader = csv.reader(_csv_lines(path, window), strict=True)
    begun = above + 1
    try:
        header = _header(path, next(reader))
        begun = above + reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
            elif cells:
                yield Fault(f"line {begun}: a row must have {len(header)} cells, as the header, got {len(cells)}")
            begun = above + reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}: line {begun}: the data must be CSV, with quotes closed and doubled inside cells, got: {error}"
        ) from None


def looks_like_header(line: str) -> bool:
    """Whether a line is at least two plain names with commas between: the header of a CSV of any name."""
    names = [name.strip().strip('"') for name in line.split(",")]
    return len(names) > 1 and all(name.replace("_", "").replace(" ", "").isalnum() for name in names)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file by column name.

    Raises:
        UserError: for a file that is torn or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: the data must be a whole parquet file, got: {what}; fetch it anew") from None


def _csv_lines(path: Path, window: TextWindow) -> Iterator[str]:
    for number, line in window.lines():
        if len(line) > MOST_CHARACTERS:
            raise UserError(f"{path}: line {number}: {TOO_LONG.reason}")
        yield line + "\n"


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"{path}: line 1: the header must name each column once, got {shown(names)}")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise UserError(f"{path}: line 1: cells must be separated by commas, got {shown(names[0])}; save it anew")
    return names
