"""Rendered segments to rows of token ids and labels, the one thing both backends train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twintune.converters.conversation import NothingTrained
from twintune.converters.encoding import encode_segments
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
    (row,) = label_batch([segments], [encoding], tokenizer, cutoff_len, truncation_strategy)
    if isinstance(row, UserError):
        raise row
    return row


def label_batch(
    batch: Sequence[Sequence[Segment]],
    encodings: Sequence[Encoding],
    tokenizer: Tokenizer,
    cutoff_len: int,
    truncation_strategy: TruncationStrategy,
) -> list[Row | UserError]:
    """Label and cut many encoded conversations as make_row does one, errors in their places."""
    if not batch:
        return []
    ids = np.concatenate([encoding.ids for encoding in encodings])
    trained = _trained_tokens(batch, encodings)
    labels = np.where(trained, ids, np.int32(IGNORED))
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(trained)])  # trained tokens before each token
    has_pads = bool((ids == tokenizer.pad_token_id).any())
    rows: list[Row | UserError] = []
    for start, end in pairwise(accumulate([len(encoding.ids) for encoding in encodings], initial=0)):
        try:
            kept = _kept(ids[start:end], tokenizer, cutoff_len, truncation_strategy)
            row = Row(ids[start:end][kept], labels[start:end][kept], cut=end - start > cutoff_len)
            if end - start <= cutoff_len:
                vars(row)["trained_tokens"] = int(before[end] - before[min(start + 1, end)])  # its cached property
            _check(row, tokenizer, end - start, cutoff_len, has_pads)
        except UserError as error:
            rows.append(error)
        else:
            rows.append(row)
    return rows


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


def _check(row: Row, tokenizer: Tokenizer, whole: int, cutoff_len: int, has_pads: bool) -> None:
    if not row.trained_tokens:
        raise NothingTrained(
            "at least one token must be trained, got none: the answer lies beyond data.cutoff_len"
            f" {cutoff_len} of {whole} tokens; raise data.cutoff_len or remove the record"
        )
    if has_pads and (pads := row.input_ids == tokenizer.pad_token_id).any():
        raise UserError(
            f"the pad token must not occur in a row, because MindFormers hides it wherever it stands, got "
            f"{tokenizer.pad.value!r} at token {pads.argmax() + 1}; "
            "name a token that never occurs as model.pad_token"
        )


def _trained_tokens(batch: Sequence[Sequence[Segment]], encodings: Sequence[Encoding]) -> NDArray[np.bool_]:
    """Whether each token of all conversations has a trained character, bool [tokens]."""
    texts = [[len(segment.text) for segment in segments] for segments in batch]
    flags = [segment.trained for segments in batch for segment in segments]
    trained = np.repeat(flags, list(chain.from_iterable(texts)))
    before = np.concatenate([np.zeros(1, np.int32), np.cumsum(trained, dtype=np.int32)])  # each character
    starts = list(accumulate(map(sum, texts), initial=0))[:-1]  # of the texts, one after the other
    shift = np.repeat(np.array(starts, np.int32), [len(encoding.ids) for encoding in encodings])
    offsets = np.concatenate([encoding.offsets for encoding in encodings])
    found: NDArray[np.bool_] = before[offsets[:, 1] + shift] > before[offsets[:, 0] + shift]
    return found
