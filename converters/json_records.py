"""JSON objects from a file, as an array or one a line, with every fault placed by line or row."""

import json
from pathlib import Path
from typing import Any

from twintune.errors import UserError, raise_collected


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a JSON array of objects, or a file with one JSON object a line.

    Raises:
        UserError: for a file that cannot be read, is empty or is not UTF-8, for every line that is not JSON
            (with line and column), and for every record that is not an object.
    """
    text = _read_text(path)
    values = _parse_array(path, text) if text.lstrip().startswith("[") else _parse_lines(path, text)
    if not values:
        raise UserError(f"{path}: the file must hold at least one record, got none")
    raise_collected(
        f"{path}: row {row}: a record must be a JSON object, got {shown(value)}"
        for row, value in enumerate(values, 1)
        if not isinstance(value, dict)
    )
    return values


def shown(value: Any) -> str:
    """A value as an error message shows it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: the data must be a file that exists, got nothing there") from None
    except IsADirectoryError:
        raise UserError(f"{path}: the data must be one .json or .jsonl file, got a folder") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the data must be UTF-8 text, got byte 0x{error.object[error.start]:02x} at byte "
            f"{error.start}; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: the data must be a readable file, got: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path}: the file must hold at least one record, got an empty file")
    return text


def _parse_array(path: Path, text: str) -> list[Any]:
    try:
        values: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(_malformed(path, error.lineno, error)) from None
    return values


def _parse_lines(path: Path, text: str) -> list[Any]:
    values, problems = [], []
    # Not splitlines(): U+2028 and its like are ordinary characters inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            problems.append(_malformed(path, number, error))
    raise_collected(problems)
    return values


def _malformed(path: Path, line: int, error: json.JSONDecodeError) -> str:
    return (
        f"{path}: line {line}, column {error.colno}: the data must be a JSON array, or one JSON object "
        f"a line, got malformed JSON ({error.msg})"
    )
