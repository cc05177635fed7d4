"""Rendered segments to rows of token ids and labels, the one thing both backends train on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twintune.converters.templates import Segment
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError

IGNORED = -100
COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class Row:
    """One conversation in token ids, or several packed one after the other.

    Attributes:
        input_ids: int32 [length].
        labels: int32 [length], a copy of input_ids that is not shifted, IGNORED where nothing is learned.
        cut: whether data.cutoff_len took something off.
        lengths: tokens of each conversation, which add up to length; empty means one of them all.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    cut: bool = False
    lengths: tuple[int, ...] = ()

    @property
    def trained_tokens(self) -> int:
        """Labels the loss counts: the first has no token before it that could predict it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


def make_row(segments: Sequence[Segment], tokenizer: Tokenizer, add_special_tokens: bool, cutoff_len: int) -> Row:
    """Tokenize the joined text once and label by character offsets.

    A token is trained if at least one of its characters is; so is the one that straddles the start of an
    answer, such as SentencePiece's "▁answer", which holds the space before it. Rows above `cutoff_len` tokens
    lose their end.

    Raises:
        UserError: if no label is left to train, or the pad token occurs.
    """
    encoding = tokenizer.encode("".join(segment.text for segment in segments), add_special_tokens)
    input_ids = np.array(encoding.ids[:cutoff_len], dtype=np.int32)
    trained = _trained_tokens(segments, encoding.offsets)[:cutoff_len]
    row = Row(input_ids, np.where(trained, input_ids, np.int32(IGNORED)), cut=len(encoding.ids) > cutoff_len)
    if not row.trained_tokens:
        raise UserError(
            "at least one token must be trained, got none: the answer begins beyond data.cutoff_len"
            f" {cutoff_len} of {len(encoding.ids)} tokens; raise data.cutoff_len or remove the record"
        )
    if tokenizer.pad_token_id in row.input_ids:
        raise UserError(
            f"the pad token must not occur in a row, because MindFormers hides it wherever it stands, got "
            f"{tokenizer.pad.value!r} at token {int(np.argmax(input_ids == tokenizer.pad_token_id)) + 1}; "
            "name a token that never occurs as model.pad_token"
        )
    return row


def _trained_tokens(segments: Sequence[Segment], offsets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    lengths = [len(segment.text) for segment in segments]
    trained = np.repeat([segment.trained for segment in segments], lengths)
    before = np.concatenate([[0], np.cumsum(trained)])  # trained characters before each character
    bounds = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return np.asarray(before[bounds[:, 1]] > before[bounds[:, 0]])
