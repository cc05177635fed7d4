import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twintune.converters.packing import pack, pack_row, pack_rows
from twintune.converters.rows import IGNORED, Row

CUTOFF = 64
lengths_of_conversations = st.lists(st.integers(1, CUTOFF), max_size=200)


def row_of(length: int, masked: int = 0) -> Row:
    ids = np.arange(1, length + 1, dtype=np.int32)
    return Row(ids, np.where(np.arange(length) < masked, IGNORED, ids).astype(np.int32))


@given(lengths_of_conversations)
def test_every_conversation_is_in_one_row_and_no_row_overflows(lengths: list[int]) -> None:
    rows = pack(lengths, CUTOFF)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= CUTOFF for row in rows)


@given(lengths_of_conversations)
def test_packing_is_first_fit_decreasing(lengths: list[int]) -> None:
    """Against the textbook's quadratic loop."""
    expected: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        for row in expected:
            if sum(lengths[member] for member in row) + lengths[number] <= CUTOFF:
                row.append(number)
                break
        else:
            expected.append([number])
    assert pack(lengths, CUTOFF) == sorted(sorted(row) for row in expected)


def test_rows_come_in_the_order_of_their_first_conversation() -> None:
    assert pack([10, 60, 4, 54, 10], CUTOFF) == [[0, 3], [1, 2], [4]]


def test_a_conversation_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="must fit a row of 64 tokens, got 65"):
        pack([3, 65], CUTOFF)


def test_no_label_crosses_a_border() -> None:
    row = pack_row([row_of(3), row_of(2), row_of(4, masked=2)])
    assert row.input_ids.tolist() == [1, 2, 3, 1, 2, 1, 2, 3, 4]
    assert row.labels.tolist() == [IGNORED, 2, 3, IGNORED, 2, IGNORED, IGNORED, 3, 4]
    assert row.labels.dtype == row.input_ids.dtype == np.int32
    assert row.lengths == (3, 2, 4)


@given(st.lists(st.tuples(st.integers(1, CUTOFF), st.integers(0, 4)), max_size=60))
def test_packing_trains_the_same_tokens(shapes: list[tuple[int, int]]) -> None:
    rows = [row_of(*shape) for shape in shapes]
    labels = [row.labels.copy() for row in rows]
    packed = pack_rows(rows, CUTOFF)
    assert sum(row.trained_tokens for row in packed) == sum(row.trained_tokens for row in rows)
    assert all(sum(row.lengths) == len(row.input_ids) <= CUTOFF for row in packed)
    assert all(np.array_equal(row.labels, before) for row, before in zip(rows, labels, strict=True))


def test_a_row_of_which_something_was_cut_says_so() -> None:
    cut = Row(np.ones(3, np.int32), np.ones(3, np.int32), cut=True)
    assert pack_row([row_of(3), cut]).cut
    assert not pack_row([row_of(3)]).cut
