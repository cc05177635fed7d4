"""What is known of every conversation of a set of rows: where it came from, where it lies, what is trained of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import new_file
from twintune.parts import CONVERSATIONS

NUMBERS = ("validation", "row", "tokens", "trained_tokens", "cut", "closed", "digest")


@dataclass(frozen=True)
class Conversations:
    """What is known of every conversation of some parts, as NumPy columns of one length.

    Attributes:
        columns: those of NUMBERS; `row` counts over all parts, apart for training and validation.
    """

    columns: dict[str, NDArray[Any]]

    def of(self, *, validation: bool) -> dict[str, NDArray[Any]]:
        """The columns of one split."""
        chosen = self.columns["validation"] == validation
        return {name: column[chosen] for name, column in self.columns.items()}

    def row_lengths(self, *, validation: bool) -> NDArray[np.int64]:
        """Tokens of each row of a split, int64 [rows]."""
        split = self.of(validation=validation)
        return np.bincount(split["row"], split["tokens"]).astype(np.int64)


def gather_conversations(parts: Sequence[Path], path: Path) -> Conversations:
    """Write the parts' conversations as one Arrow stream with running row numbers, and give its columns."""
    import pyarrow as pa

    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in NUMBERS}
    rows_before = {False: 0, True: 0}
    with new_file(path) as aside, pa.OSFile(str(aside), "wb") as sink:
        stream = None
        for part in parts:
            with pa.OSFile(str(part / CONVERSATIONS), "rb") as source:
                table = pa.ipc.open_stream(source).read_all()
            table, rows_before = _numbered(table, rows_before)
            stream = stream or pa.ipc.new_stream(sink, table.schema)
            stream.write_table(table)
            for name in NUMBERS:
                columns[name].append(table[name].to_numpy())
        if stream:
            stream.close()
    return Conversations({name: np.concatenate(arrays) for name, arrays in columns.items()})


def _numbered(table: Any, rows_before: dict[bool, int]) -> tuple[Any, dict[bool, int]]:
    """The table with row numbers that go on from those of earlier parts, and where the next part goes on."""
    import pyarrow as pa

    rows = table["row"].to_numpy()
    validation = table["validation"].to_numpy()
    numbers = rows + np.where(validation, rows_before[True], rows_before[False])
    after = {
        split: before + (int(rows[validation == split].max()) + 1 if (validation == split).any() else 0)
        for split, before in rows_before.items()
    }
    column = table.schema.get_field_index("row")
    return table.set_column(column, "row", pa.array(numbers, pa.int32())), after


def read_conversations(path: Path, *, validation: bool = False) -> dict[str, NDArray[Any]]:
    """All columns of a prepared folder's conversations, for the rows of one split."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
        split = table["validation"].to_numpy() == validation
        return {name: table[name].to_numpy()[split] for name in table.schema.names}


def read_row_lengths(path: Path, *, validation: bool = False) -> NDArray[np.int64]:
    """Tokens of each row of a prepared folder's split, int64 [rows]."""
    columns = read_conversations(path, validation=validation)
    return np.bincount(columns["row"], columns["tokens"]).astype(np.int64)
