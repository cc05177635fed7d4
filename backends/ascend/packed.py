"""Packed rows on MindFormers: borders of conversations for the attention of its LLaMA network.

Positions go on counting through a row: rotary embeddings depend on the distance between two tokens only, and
tokens of different conversations never meet.
"""

from typing import Any

import mindspore as ms
from mindformers.models.llama.llama_transformer import LLamaAttention
from mindspore import nn, ops

from twintune.backends.ascend.profile import CONVERSATION_ENDS


class PackedNetwork(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A MindFormers network whose attention stays inside each conversation.

    Args:
        network: LlamaForCausalLM with LoRA, in MindFormers' wrapper that hands inputs on by the names of
            train_dataset.input_columns, and drops those that have none there.
        borders: what the dataset gives, CONVERSATION_ENDS or CONVERSATION_NUMBERS (see profile.packed_borders).
    """

    def __init__(self, network: nn.Cell, borders: str) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.as_ends = borders == CONVERSATION_ENDS
        if not self.as_ends:
            _hide_by_mask(network)

    def construct(self, input_ids: ms.Tensor, labels: ms.Tensor, borders: ms.Tensor) -> Any:
        """Loss sum and trained tokens.

        Args:
            input_ids: int32 [rows, length + 1].
            labels: int32 [rows, length + 1].
            borders: int32, see data.conversation_ends and data.conversation_numbers.
        """
        if self.as_ends:
            length = input_ids.shape[1] - 1  # the kernel sees all rows as one line
            starts = ops.arange(0, input_ids.shape[0]).astype(ms.int32) * length
            return self.network(input_ids, labels, borders + ops.expand_dims(starts, 1))
        return self.network(input_ids, labels, hidden(borders))


def hidden(numbers: ms.Tensor) -> ms.Tensor:
    """What a token may not see, uint8 [rows, 1, length, length]: 1 on other conversations and on the future."""
    place = ops.arange(0, numbers.shape[1])
    future = ops.expand_dims(place, 0) > ops.expand_dims(place, 1)
    others = ops.not_equal(ops.expand_dims(numbers, 1), ops.expand_dims(numbers, 2))
    return ops.expand_dims(ops.logical_or(others, future), 1).astype(ms.uint8)


class HideScores(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Scores of hidden keys far below all others."""

    def construct(self, mask: ms.Tensor, scores: ms.Tensor) -> ms.Tensor:
        """Take 10,000 off, as MindFormers' own causal mask does; softmax then gives 0."""
        return scores - ops.cast(mask, scores.dtype) * 10000.0


def _hide_by_mask(network: Any) -> None:
    """Without flash attention MindFormers adds the 0s and 1s of `attention_mask` to the scores, and hides nothing."""
    for _, cell in network.cells_and_names():
        if isinstance(cell, LLamaAttention) and not cell.use_flash_attention:
            del cell.add
            cell.add = HideScores()
