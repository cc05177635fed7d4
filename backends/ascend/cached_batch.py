"""A batch of texts on its way, each row at its own length: what starts, goes on and is replaced in the cache."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from twintune.backends.ascend.cached_decode import OneToken, Prompt, parts_of
from twintune.backends.ascend.row_lengths import RowLengths

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
        self._lengths = RowLengths(positions)

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin a batch; logits after the last token of each prompt, float32 [prompts, vocabulary].

        Raises:
            UserError: if the longest prompt and its new tokens go beyond the model's positions.
        """
        self._shape = self._fitting(self._lengths.start(prompts, max_new_tokens), len(prompts))
        self._compiled[self._shape].clear()
        return self.replace(range(len(prompts)), prompts)

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Put prompts at the places of rows that ended; logits after each, float32 [prompts, vocabulary].

        Raises:
            ValueError: for a prompt that is longer than those of `start`, which the cache has no room for.
        """
        self._lengths.put(places, prompts, self._shape[0])
        logits = []
        for place, prompt in zip(places, prompts, strict=True):
            padded = np.full((1, bucket(len(prompt), self._positions)), self._pad_token_id, np.int32)
            padded[0, : len(prompt)] = prompt
            last, kept = self._prompt(ms.Tensor(padded), ms.Tensor([len(prompt) - 1], ms.int32))
            self._compiled[self._shape].put_row(place, kept)
            logits.append(last.asnumpy())
        return np.concatenate(logits)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to every row; logits after it, float32 [prompts, vocabulary].

        A row that has had all its new tokens stays as long as it is, and its logits mean nothing.
        """
        count = len(tokens)
        ids, positions = (np.zeros((self._shape[1], 1), np.int32) for _ in range(2))
        ids[:count, 0] = tokens
        positions[:count, 0] = self._lengths.grow()
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
