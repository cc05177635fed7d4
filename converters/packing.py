"""Several conversations in one row, so that no position is wasted on padding."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twintune.converters.rows import IGNORED, Row

LENGTHS = "lengths"  # the column, beside rows.COLUMNS, that files of packed rows have


def pack(lengths: Sequence[int], cutoff_len: int) -> list[list[int]]:
    """Share conversations out among rows, first-fit decreasing (Johnson 1973), in O(n log n).

    The longest comes first, equals in their order, each into the first row that has room for it.

    Args:
        lengths: tokens of each conversation.
        cutoff_len: tokens of a row.

    Returns:
        The conversations of each row, ascending; rows in the order of their first conversation.

    Raises:
        ValueError: if a conversation is longer than a row.
    """
    if max(lengths, default=0) > cutoff_len:
        raise ValueError(f"a conversation must fit a row of {cutoff_len} tokens, got {max(lengths)}")
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [cutoff_len] * (2 * leaves)  # a tree: every node knows the largest room below it, the root is 1
    rows: dict[int, list[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        leaf = _first_with_room(room, leaves, lengths[number])
        rows.setdefault(leaf, []).append(number)
        _take(room, leaf, lengths[number])
    return sorted(sorted(row) for row in rows.values())


def _first_with_room(room: list[int], leaves: int, length: int) -> int:
    node = 1
    while node < leaves:
        node *= 2
        if room[node] < length:
            node += 1
    return node


def _take(room: list[int], leaf: int, length: int) -> None:
    room[leaf] -= length
    node = leaf // 2
    while node:
        largest = max(room[2 * node], room[2 * node + 1])
        if room[node] == largest:
            return
        room[node] = largest
        node //= 2


def pack_rows(rows: Sequence[Row], cutoff_len: int) -> list[Row]:
    """Rows of one conversation each to packed ones, whose `lengths` say where each conversation ends.

    Raises:
        ValueError: if a row is longer than `cutoff_len`.
    """
    shared = pack([len(row.input_ids) for row in rows], cutoff_len)
    return [pack_row([rows[number] for number in members]) for members in shared]


def pack_row(rows: Sequence[Row]) -> Row:
    """One row of several conversations, one after the other; no label is learned across a border."""
    return Row(
        np.concatenate([row.input_ids for row in rows]),
        np.concatenate([_without_first(row.labels) for row in rows]),
        cut=any(row.cut for row in rows),
        lengths=tuple(len(row.input_ids) for row in rows),
    )


def _without_first(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """A conversation's first label would be predicted from the last token of the one before."""
    labels = labels.copy()
    labels[:1] = IGNORED
    return labels
