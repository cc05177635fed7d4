"""A folder of prepared rows: what is in it, and whether it still is what its manifest says."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from twintune.artifacts import MANIFEST, changed_files, read_sealed, sha256_file, write_sealed
from twintune.backends import Choice
from twintune.converters import arrow, mindrecord
from twintune.errors import UserError, raise_collected

ARROW = "rows.arrow"
MINDRECORD = "rows.mindrecord"
VALIDATION_ARROW = "validation.arrow"
VALIDATION_MINDRECORD = "validation.mindrecord"
CONVERSATIONS = "conversations.arrow"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class DataFile:
    """One file of records.

    Attributes:
        name: its name, without folders: a manifest holds nothing of a machine.
        sha256: of its bytes.
        format: how its records were read, and why so.
        weight: how often each record is taken.
        read, kept, rejected: records; read = kept + rejected.
    """

    name: str
    sha256: str
    format: Choice
    weight: float
    read: int = 0
    kept: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Summary:
    """What is known of a set of rows without reading it.

    Attributes:
        fingerprint: the sha256 of everything that decides the rows.
        files: the records they were made of.
        left_out: records that a weight below 1 did not take; they count as not read.
        rejected: records by kind: invalid, nothing_trained, too_long.
        packed: whether a row may hold several conversations.
        count: rows to train on.
        conversations: in those rows.
        row_length: tokens of the longest row.
        tokens: tokens of all rows.
        trained_tokens: labels the loss counts, of all rows.
        cut_rows: conversations that data.cutoff_len took something from.
        not_closed: conversations that do not end with the token or text at which the model stops.
        duplicates: conversations with the same tokens as an earlier one.
        validation_rows: rows kept for validation, one for each conversation, never packed.
        largest_token_id: over all rows.
        pad_token_id: occurs in no row.
        pad_token: its text, with the reason it was chosen.
    """

    fingerprint: str
    files: tuple[DataFile, ...]
    left_out: int
    rejected: dict[str, int]
    packed: bool
    count: int
    conversations: int
    row_length: int
    tokens: int
    trained_tokens: int
    cut_rows: int
    not_closed: int
    duplicates: int
    validation_rows: int
    largest_token_id: int
    pad_token_id: int
    pad_token: Choice

    @property
    def read(self) -> int:
        """Records read from all files."""
        return sum(file.read for file in self.files)

    @property
    def kept(self) -> int:
        """Records that gave at least one row."""
        return sum(file.kept for file in self.files)


@dataclass(frozen=True)
class Prepared:
    """A folder of rows, and what is in it."""

    folder: Path
    summary: Summary


def write_manifest(folder: Path, summary: Summary, made_with: dict[str, Any]) -> None:
    """Write manifest.json over everything in a folder, sealed with its own sha256."""
    files = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
    write_sealed(folder / MANIFEST, made_with | {"rows": asdict(summary), "sha256": files})


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared folder, every file compared with the manifest.

    Raises:
        UserError: for every file that is missing, has changed or holds another number of rows.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: rows must be a folder made by twintune prepare, got no {MANIFEST}")
    manifest = read_sealed(path)
    try:
        summary = TypeAdapter(Summary).validate_python(manifest["rows"])
        files = TypeAdapter(dict[str, str]).validate_python(manifest["sha256"])
    except (KeyError, ValidationError) as error:
        raise UserError(f"{path}: must be a manifest written by twintune prepare, got: {error!r}") from None
    raise_collected(changed_files(folder, files))
    raise_collected(_wrong_counts(folder, files, summary))
    return Prepared(folder, summary)


def _wrong_counts(folder: Path, files: dict[str, str], summary: Summary) -> Iterable[str]:
    """What the sha256 cannot tell: whether the files, though as written, hold what the manifest counts."""
    expected = {ARROW: summary.count, VALIDATION_ARROW: summary.validation_rows}
    for name, count in expected.items():
        if name in files and (actual := arrow.count_rows(folder / name)) != count:
            yield f"{folder / name}: must hold {count} rows, as {MANIFEST} says, got {actual}"
    expected = {MINDRECORD: summary.count, VALIDATION_MINDRECORD: summary.validation_rows}
    for name, count in expected.items():
        if any(file.startswith(name) for file in files) and (actual := mindrecord.count_rows(folder / name)) != count:
            yield f"{folder / name}: must hold {count} rows, as {MANIFEST} says, got {actual}"
