"""What of a job is looked at closely: rows, conversations, positions and matrices, drawn by seed, within bounds.

Both sides draw from the same numbers, so that two bundles of one job hold the same places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest

import numpy as np
from numpy.typing import NDArray

from twintune.converters.rows import IGNORED, Row

STORED_TOKENS = 1_000_000  # of all rows whose ids and labels are kept, 8 bytes each
CANDIDATES = 64  # rows that conversations are taken from
CONVERSATIONS = 4  # whose forward is measured
LOGIT_NUMBERS = 600_000  # kept of one conversation, 4 bytes each
HIDDEN_NUMBERS = 1_000_000
MATRIX_NUMBERS = 2_000_000  # of all LoRA matrices of a kind that are kept whole


@dataclass(frozen=True)
class Conversation:
    """One conversation of a row: where it is, its token ids, and where its first trained token stands."""

    row: int
    start: int
    ids: tuple[int, ...]
    prompt_length: int


def choose_rows(lengths: NDArray[np.int64], order: NDArray[np.int64], seed: int, everything: bool) -> list[int]:
    """The rows whose ids and labels are kept: those of the first step, and others by seed up to STORED_TOKENS."""
    if everything or lengths.sum() <= STORED_TOKENS:
        return list(range(len(lengths)))
    drawn = np.random.default_rng((seed, 1)).permutation(len(lengths))
    wanted = list(dict.fromkeys([*order[0].ravel().tolist(), *drawn.tolist()]))
    kept = np.cumsum(lengths[wanted]) <= STORED_TOKENS
    kept[: order[0].size] = True
    return sorted(row for row, fits in zip(wanted, kept, strict=True) if fits)


def draw_rows(count: int, seed: int) -> list[int]:
    """The rows that conversations are taken from, at most CANDIDATES of `count`, in the order of the draw."""
    drawn: list[int] = np.random.default_rng((seed, 2)).permutation(count)[:CANDIDATES].tolist()
    return drawn


def choose_conversations(rows: Sequence[tuple[int, Row]], seed: int, count: int) -> list[Conversation]:
    """`count` conversations, each with a prompt and a trained token; one of each row, then a second of each.

    A larger count adds conversations behind those of a smaller one.

    Args:
        rows: numbers and rows in the order of draw_rows.
        seed: of the recipe.
        count: at most so many.
    """
    found = []
    for number, row in rows:
        of_row = _conversations(number, row)
        found.append([of_row[place] for place in np.random.default_rng((seed, 6, number)).permutation(len(of_row))])
    rounds = chain.from_iterable(zip_longest(*found))
    return [one for one in rounds if one is not None][:count]


def _conversations(number: int, row: Row) -> list[Conversation]:
    borders = np.cumsum([0, *(row.lengths or (len(row.input_ids),))]).tolist()
    found = []
    for start, end in pairwise(borders):
        trained = np.flatnonzero(row.labels[start:end] != IGNORED)
        prompt = next((int(place) for place in trained if place > 0), None)
        if prompt is not None:
            found.append(Conversation(number, start, tuple(row.input_ids[start:end].tolist()), prompt))
    return found


def choose_positions(length: int, width: int, most: int, seed: tuple[int, ...], everything: bool) -> NDArray[np.int64]:
    """Positions of a conversation, the first and last among them, as many as fit `most` numbers of `width` each."""
    count = max(2, most // width)
    if everything or length <= count:
        return np.arange(length)
    drawn = np.random.default_rng(seed).permutation(np.arange(1, length - 1))[: count - 2]
    return np.sort(np.concatenate([[0, length - 1], drawn]))


def choose_matrices(sizes: Mapping[str, int], seed: int, everything: bool) -> list[str]:
    """The LoRA matrices that are kept whole: all, or by seed up to MATRIX_NUMBERS numbers.

    Args:
        sizes: numbers in each matrix, by PEFT name.
        seed: of the recipe.
        everything: keep all.
    """
    names = sorted(sizes)
    if everything or sum(sizes.values()) <= MATRIX_NUMBERS:
        return names
    drawn = [names[place] for place in np.random.default_rng((seed, 3)).permutation(len(names))]
    kept = np.cumsum([sizes[name] for name in drawn]) <= MATRIX_NUMBERS
    return sorted(name for name, fits in zip(drawn, kept, strict=True) if fits)


def stored(tensors: Mapping[str, NDArray[np.float32]], names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """The chosen ones of some tensors."""
    return {name: tensors[name] for name in names}
