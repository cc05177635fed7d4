"""Records from files: what each holds, one record at a time.

A file is read by what is in it; its name is a hint where the content alone could be two things. Memory is
bounded by one record, whatever the file's size.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from twintune.converters.faults import Fault
from twintune.converters.json_scanner import JsonScanner
from twintune.converters.json_stream import read_array, read_lines, read_objects
from twintune.converters.source_text import read_bytes, read_text
from twintune.converters.tables import looks_like_header, read_csv, read_parquet
from twintune.converters.text_window import TextWindow
from twintune.errors import UserError

PARQUET_MAGIC = b"PAR1"


class Record(NamedTuple):
    """A record as it was read: a JSON object or list, its file and its number there, from 1."""

    path: Path
    row: int
    value: Any


class Rejection(NamedTuple):
    """A record that cannot be used; `reason` is the sentence without file and row."""

    path: str
    row: int
    reason: str


def read_file(path: Path) -> Iterator[Record | Rejection]:
    """Every record of a file, in order, or why it cannot be used.

    A JSON array, one JSON value a line, JSON objects one after another over any number of lines, CSV with a
    header row, or parquet. A malformed line is a Rejection; inside an array or among objects nothing after a
    fault can be trusted, and it ends the reading.

    Raises:
        UserError: for a file that cannot be read, holds no record, is not UTF-8, or is torn or malformed.
    """
    row = 0
    for row, value in enumerate(_values(path), 1):
        yield Rejection(str(path), row, value.reason) if isinstance(value, Fault) else Record(path, row, value)
    if not row:
        raise UserError(f"{path}: the file must hold at least one record, got none")


def stable_hash(value: Any) -> float:
    """A number in [0, 1) that depends on a record's content alone, on any machine.

    The first 8 bytes of the sha256 of its JSON with sorted keys; what JSON cannot hold (a date in parquet)
    counts as its text.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 11) / 2**53  # a double holds 53 bits


def is_for_validation(value: Any, val_size: float) -> bool:
    """Whether a record is of the share that data.val_size keeps for validation: told by its own hash."""
    return stable_hash(value) < val_size


def _values(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet" or next(read_bytes(path)).startswith(PARQUET_MAGIC):
        return read_parquet(path)
    window = TextWindow(read_text(path))
    match window.next_character():
        case "":
            raise UserError(f"{path}: the file must hold at least one record, got an empty file")
        case "[":
            return read_lines(window) if _opens_lists(window) else read_array(path, window)
        case "{":
            return read_lines(window) if _opens_lines(window) else read_objects(path, window)
    if path.suffix.lower() == ".csv" or looks_like_header(window.line_ahead()):
        return read_csv(path, window)
    return read_lines(window)


def _opens_lists(window: TextWindow) -> bool:
    """Whether text that begins with [ is one list a line, not an array of records."""
    line = window.line_ahead()
    return line.rstrip().endswith("]") and window.character_after(line) in ("[", "{")


def _opens_lines(window: TextWindow) -> bool:
    """Whether text that begins with { is one object a line, not objects that span lines or share one."""
    line = window.line_ahead()
    try:
        end = JsonScanner().scan(line, 0)[1]
    except json.JSONDecodeError as error:  # at the line's end, it may go on in the next
        return error.pos < len(line.rstrip())
    return not line[end:].lstrip().startswith("{")
