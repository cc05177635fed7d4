"""A folder of prepared rows: what is in it, and whether it still is what its manifest says."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twintune.artifacts import MANIFEST, sha256_file
from twintune.backends import Choice
from twintune.converters import arrow, mindrecord
from twintune.errors import UserError, raise_collected

ARROW = "rows.arrow"
MINDRECORD = "rows.mindrecord"


@dataclass(frozen=True)
class Summary:
    """What is known of a set of rows without reading it.

    Attributes:
        fingerprint: the sha256 of everything that decides the rows.
        count: rows.
        row_length: tokens of the longest row.
        tokens: tokens of all rows.
        trained_tokens: labels the loss counts, of all rows.
        cut_rows: rows that lost their end to data.cutoff_len.
        largest_token_id: over all rows.
        pad_token_id: occurs in no row.
        pad_token: its text, with the reason it was chosen.
    """

    fingerprint: str
    count: int
    row_length: int
    tokens: int
    trained_tokens: int
    cut_rows: int
    largest_token_id: int
    pad_token_id: int
    pad_token: Choice


@dataclass(frozen=True)
class Prepared:
    """A folder of rows, and what is in it."""

    folder: Path
    summary: Summary


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared folder, every file compared with the manifest.

    Raises:
        UserError: for every file that is missing, has changed or holds another number of rows.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        counts = manifest["rows"]
        summary = Summary(**(counts | {"pad_token": Choice(**counts["pad_token"])}))
        files: dict[str, str] = manifest["sha256"]
    except FileNotFoundError:
        raise UserError(f"{folder}: rows must be a folder made by twintune prepare, got no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: must be a manifest written by twintune prepare, got: {error!r}") from None
    raise_collected(_changed_files(folder, files))
    raise_collected(_wrong_counts(folder, files, summary.count))
    return Prepared(folder, summary)


def _changed_files(folder: Path, files: dict[str, str]) -> Iterable[str]:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: must be there, as {MANIFEST} says, got nothing; prepare the rows again"
        elif (actual := sha256_file(path)) != expected:
            yield f"{path}: must have sha256 {expected}, as {MANIFEST} says, got {actual}"


def _wrong_counts(folder: Path, files: dict[str, str], expected: int) -> Iterable[str]:
    for name, count_rows in ((ARROW, arrow.count_rows), (MINDRECORD, mindrecord.count_rows)):
        if name in files and (actual := count_rows(folder / name)) != expected:
            yield f"{folder / name}: must hold {expected} rows, as {MANIFEST} says, got {actual}"
