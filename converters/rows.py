"""Rendered segments to rows of token ids and labels, the one thing both backends train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twintune.converters.conversation import NothingTrained
from twintune.converters.encoding import encode_segments, stretches
from twintune.converters.templates import Segment
from twintune.converters.tokenizer import Encoding, Tokenizer
from twintune.errors import UserError

IGNORED = -100
COLUMNS = ("input_ids", "labels")
TruncationStrategy = Literal["right", "left", "delete"]


class TooLong(UserError):
    """A conversation of more than data.cutoff_len tokens where data.truncation_strategy is delete."""


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

    @cached_property
    def trained_tokens(self) -> int:
        """Labels the loss counts: the first has no token before it that could predict it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


def make_row(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    add_special_tokens: bool,
    cutoff_len: int,
    truncation_strategy: TruncationStrategy = "right",
    split_special_tokens: bool = True,
) -> Row:
    """Tokenize the joined text once and label by character offsets.

    A token is trained if at least one of its characters is; so is the one that straddles the start of an
    answer, such as SentencePiece's "▁answer", which holds the space before it.

    Args:
        segments: what a template rendered.
        tokenizer: of the model.
        add_special_tokens: whether the tokenizer adds its own, as the template says.
        cutoff_len: tokens of the longest row.
        truncation_strategy: what a longer one loses: its end (right), its start but for the bos (left), or
            itself (delete).
        split_special_tokens: whether a special token that a record spells is plain text.

    Raises:
        TooLong: if a row is to be deleted.
        NothingTrained: if no label is left to train.
        UserError: if the pad token occurs.
    """
    encoding = encode_segments(segments, tokenizer, add_special_tokens, split_special_tokens)
    return label_row(segments, encoding, tokenizer, cutoff_len, truncation_strategy)


def label_row(
    segments: Sequence[Segment],
    encoding: Encoding,
    tokenizer: Tokenizer,
    cutoff_len: int,
    truncation_strategy: TruncationStrategy,
) -> Row:
    """Label and cut what make_row has encoded; arguments and errors are make_row's."""
    whole = encoding.ids
    kept = _kept(whole, tokenizer, cutoff_len, truncation_strategy)
    input_ids = whole[kept]
    trained = _trained_tokens(segments, encoding.offsets)[kept]
    labels = np.where(trained, input_ids, np.int32(IGNORED))
    row = Row(input_ids, labels, cut=len(whole) > cutoff_len)
    if not row.trained_tokens:
        raise NothingTrained(
            "at least one token must be trained, got none: the answer lies beyond data.cutoff_len"
            f" {cutoff_len} of {len(whole)} tokens; raise data.cutoff_len or remove the record"
        )
    _refuse_pad(row, tokenizer)
    return row


def _kept(
    whole: NDArray[np.int32], tokenizer: Tokenizer, cutoff_len: int, strategy: TruncationStrategy
) -> slice | list[int]:
    length = len(whole)
    if length <= cutoff_len:
        return slice(None)
    if strategy == "delete":
        raise TooLong(
            f"a conversation must have at most data.cutoff_len {cutoff_len} tokens, got {length}, and "
            "data.truncation_strategy is delete; raise data.cutoff_len to keep it"
        )
    if strategy == "right":
        return slice(cutoff_len)
    if whole[0] == tokenizer.bos_token_id:
        return [0, *range(length - cutoff_len + 1, length)]
    return slice(length - cutoff_len, None)


def _refuse_pad(row: Row, tokenizer: Tokenizer) -> None:
    places = np.flatnonzero(row.input_ids == tokenizer.pad_token_id)
    if len(places):
        raise UserError(
            f"the pad token must not occur in a row, because MindFormers hides it wherever it stands, got "
            f"{tokenizer.pad.value!r} at token {places[0] + 1}; "
            "name a token that never occurs as model.pad_token"
        )


def _trained_tokens(segments: Sequence[Segment], offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
    starts, ends = offsets[:, 0], offsets[:, 1]
    trained = np.zeros(len(offsets), np.bool_)
    for start, end in stretches(segments, lambda segment: segment.trained):
        trained |= (starts < end) & (ends > start)
    return trained & (starts < ends)
