"""How long each text of a batch on its way is, and how long it may become."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twintune.backends.room import require_room


class RowLengths:
    """The rows of a batch, whatever cache they lie in.

    Args:
        positions: most tokens of a text.

    Attributes:
        now: tokens of each row so far, int32 [rows].
    """

    def __init__(self, positions: int) -> None:
        self.now = np.zeros(0, np.int32)
        self._ends = np.zeros(0, np.int32)  # tokens that each may have
        self._max_new_tokens = 0
        self._positions = positions

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
        """Make place for a batch; the tokens that its longest text may have.

        Raises:
            UserError: if the longest prompt and its new tokens go beyond the model's positions.
        """
        longest = max(map(len, prompts))
        require_room(longest, max_new_tokens, self._positions)
        self._max_new_tokens = max_new_tokens
        self.now, self._ends = (np.zeros(len(prompts), np.int32) for _ in range(2))
        return longest + max_new_tokens

    def put(self, places: Sequence[int], prompts: Sequence[Sequence[int]], slots: int) -> None:
        """Put prompts at places of a cache that has so many slots for a row.

        Raises:
            ValueError: for a prompt that it has no room for with its new tokens.
        """
        room = max(map(len, prompts)) + self._max_new_tokens
        if room > slots:
            raise ValueError(f"a prompt and its new tokens must fit the {slots} of the cache, got {room}")
        rows = list(places)
        self.now[rows] = [len(prompt) for prompt in prompts]
        self._ends[rows] = self.now[rows] + self._max_new_tokens

    def grow(self) -> NDArray[np.int32]:
        """Add a token to every row that has not had all its new ones; its place in each row, int32 [rows]."""
        self.now = np.minimum(self.now + 1, self._ends)
        return self.now - 1
