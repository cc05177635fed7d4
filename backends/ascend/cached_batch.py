"""A batch of texts on its way, each row at its own length: what starts, goes on and is replaced in the cache."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from twintune.backends.ascend.cached_decode import OneToken, Prompt, parts_of
from twintune.backends.room import require_room

SHORTEST = 64  # tokens; the least length that is compiled


def bucket(tokens: int, most: int) -> int:
    """The length that a graph is compiled for: the next power of two, at least SHORTEST and no more than `most`."""
    return min(most, max(SHORTEST, 1 << (tokens - 1).bit_length()))


class CachedBatch:
    """Prompts, then a token for every row at each step.

    Graphs are compiled where none fits: one for each bucket of prompts, which go through one by one, and one for each
    batch size and bucket of whole texts. A batch has room for all its new tokens from its start.

    Args:
        network: LlamaForCausalLM, with a prefix or without, or PhiForCausalLM, in evaluation mode.
        pad_token_id: stands behind prompts.
        positions: most tokens of a text.
        virtual_tokens: of the network's prefix; 0 for none.
    """

    def __init__(self, network: nn.Cell, pad_token_id: int, positions: int, virtual_tokens: int) -> None:
        self._network = network
        self._pad_token_id = pad_token_id
        self._positions = positions
        self._virtual_tokens = virtual_tokens
        self._layers = parts_of(network)
        self._prompt = Prompt(network, self._layers, virtual_tokens).set_train(False)
        self._compiled: dict[tuple[int, int], OneToken] = {}  # by length and rows
        self._shape = (0, 0)
        self._max_new_tokens = 0
        self._lengths = np.zeros(0, np.int32)  # tokens of each row so far
        self._ends = np.zeros(0, np.int32)  # tokens that it may have

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin a batch; logits after the last token of each prompt, float32 [prompts, vocabulary].

        Raises:
            UserError: if the longest prompt and its new tokens go beyond the model's positions.
        """
        longest = max(map(len, prompts))
        require_room(longest, max_new_tokens, self._positions)
        self._max_new_tokens = max_new_tokens
        self._shape = self._fitting(longest + max_new_tokens, len(prompts))
        self._compiled[self._shape].clear()
        self._lengths = np.zeros(len(prompts), np.int32)
        self._ends = np.zeros(len(prompts), np.int32)
        return self._put(range(len(prompts)), prompts)

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Put prompts at the places of rows that ended; logits after each, float32 [prompts, vocabulary].

        Raises:
            ValueError: for a prompt that is longer than those of `start`, which the cache has no room for.
        """
        room = max(map(len, prompts)) + self._max_new_tokens
        if room > self._shape[0]:
            raise ValueError(f"a prompt and its new tokens must fit the {self._shape[0]} of the cache, got {room}")
        return self._put(places, prompts)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to every row; logits after it, float32 [prompts, vocabulary].

        A row that has had all its new tokens stays as long as it is, and its logits mean nothing.
        """
        count = len(self._lengths)
        ids, positions = (np.zeros((self._shape[1], 1), np.int32) for _ in range(2))
        ids[:count, 0] = tokens
        positions[:count, 0] = np.minimum(self._lengths, self._ends - 1)
        self._lengths = positions[:count, 0] + 1
        logits: NDArray[np.float32] = self._compiled[self._shape](ms.Tensor(ids), ms.Tensor(positions)).asnumpy()
        return logits[:count]

    def _fitting(self, room: int, rows: int) -> tuple[int, int]:
        """Length and rows of the smallest graph that fits, as compiling takes longer than computing a few rows more."""
        fitting = [shape for shape in self._compiled if shape[0] >= room and shape[1] >= rows]
        if fitting:
            return min(fitting)
        shape = (bucket(room, self._positions), rows)
        one_token = OneToken(self._network, self._layers, rows, shape[0], self._virtual_tokens)
        self._compiled[shape] = one_token.set_train(False)
        return shape

    def _put(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        logits = []
        for place, prompt in zip(places, prompts, strict=True):
            padded = np.full((1, bucket(len(prompt), self._positions)), self._pad_token_id, np.int32)
            padded[0, : len(prompt)] = prompt
            last, kept = self._prompt(ms.Tensor(padded), ms.Tensor([len(prompt) - 1], ms.int32))
            self._compiled[self._shape].put_row(place, kept)
            self._lengths[place] = len(prompt)
            self._ends[place] = len(prompt) + self._max_new_tokens
            logits.append(last.asnumpy())
        return np.concatenate(logits)
