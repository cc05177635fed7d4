"""What a MindRecord file holds, whoever made it: rows, lengths, and how much of it is trained."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twintune.converters import mindrecord
from twintune.converters.rows import IGNORED, Row
from twintune.errors import UserError


@dataclass(frozen=True)
class MindRecordReport:
    """What a MindRecord file holds.

    Attributes:
        rows: how many.
        shortest, longest: tokens of a row.
        tokens: of all rows.
        trained_tokens: labels the loss counts.
        wholly_masked: rows without any.
        trailing: tokens in runs of one id of at least two, masked, at the end of a row: padding, as a rule.
        trailing_id: the id that most of these runs are of; None if there are none.
    """

    rows: int
    shortest: int
    longest: int
    tokens: int
    trained_tokens: int
    wholly_masked: int
    trailing: int
    trailing_id: int | None

    def lines(self) -> list[tuple[str, str]]:
        """The figures, as pairs of a name and a sentence."""
        masked = self.tokens - self.trained_tokens
        padding = f"{self.trailing / self.tokens:.1%} of the tokens"
        return [
            ("rows", f"{self.rows}, of {self.shortest} to {self.longest} tokens, {self.tokens:,} in all"),
            ("trained", f"{self.trained_tokens:,} tokens"),
            ("masked", f"{masked:,} tokens ({masked / self.tokens:.1%})"),
            ("wholly masked", f"{self.wholly_masked} rows"),
            ("padding", f"{padding}, id {self.trailing_id}" if self.trailing else "none at the end of rows"),
        ]


def report_mindrecord(path: Path) -> MindRecordReport:
    """Read a MindRecord file from beginning to end.

    Raises:
        UserError: if MindSpore is not installed, the file cannot be read, has no input_ids and labels, or
            holds no row.
    """
    from twintune.backends import missing_packages

    if "mindspore" in missing_packages("ascend"):
        raise UserError(
            f"{path}: mindspore must be installed to read a MindRecord, got none; run: pip install 'twintune[ascend]'"
        )
    if not path.is_file():
        raise UserError(f"{path}: must be a recipe (.yaml) or a MindRecord file, got nothing there")
    lengths, trained = [], []
    runs: Counter[int] = Counter()
    for row in mindrecord.read_rows(path):
        lengths.append(len(row.input_ids))
        trained.append(row.trained_tokens)
        run = _trailing_run(row)
        if run > 1:
            runs[int(row.input_ids[-1])] += run
    if not lengths:
        raise UserError(f"{path}: the file must hold at least one row, got none")
    return MindRecordReport(
        rows=len(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        tokens=sum(lengths),
        trained_tokens=sum(trained),
        wholly_masked=trained.count(0),
        trailing=runs.total(),
        trailing_id=runs.most_common(1)[0][0] if runs else None,
    )


def _trailing_run(row: Row) -> int:
    """Tokens at the end of a row that are the same and masked."""
    other = (row.input_ids != row.input_ids[-1]) | (row.labels != IGNORED)
    return int(np.argmax(other[::-1])) if other.any() else len(other)
