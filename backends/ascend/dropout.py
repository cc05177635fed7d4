"""The dropout of twintune.dropout in MindFormers' LoRA layers."""

from typing import Any

import mindspore as ms
import numpy as np
from mindpet.delta.lora import LoRADense
from mindspore import nn, ops

from twintune.backends.ascend.nf4 import NF4LoraLinear
from twintune.backends.ascend.parameters import names_of_trained
from twintune.backends.ascend.profile import compiled_length
from twintune.backends.job import Lora, TrainJob
from twintune.dropout import channel_numbers, first_kept, module_of_matrix
from twintune.models import read_model_config


class FormulaDropout(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Drop by the product of a token's and a channel's number.

    Args:
        lora_dropout: share of elements that are dropped; the others grow by 1 / (1 - lora_dropout).
        tokens: odd numbers of the micro-batch, a parameter int32 [rows, length].
        channels: odd numbers, int32 [channels].
    """

    def __init__(self, lora_dropout: float, tokens: ms.Parameter, channels: Any) -> None:
        super().__init__(auto_prefix=False)
        self.tokens = tokens
        self.channels = ms.Tensor(channels)
        self.first_kept = ms.Tensor(first_kept(lora_dropout), ms.int32)
        self.growth = 1 / (1 - lora_dropout)
        self.set_train()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """[rows * length, channels] to the same, in training mode; as it is in evaluation mode."""
        if not self.training:
            return x
        kept = self.tokens.reshape(-1, 1) * self.channels >= self.first_kept
        grown = ops.cast(x, ms.float32) * self.growth
        return ops.cast(grown * ops.cast(kept, ms.float32), x.dtype)


class NumberedTokens(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A network that is given the numbers of its tokens as the last column of its rows."""

    def __init__(self, network: nn.Cell, tokens: ms.Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.tokens = tokens

    def construct(self, *rows: ms.Tensor) -> Any:
        """What the network gives for the other columns."""
        first = ops.depend(rows[0], ops.assign(self.tokens, rows[-1]))
        return self.network(first, *rows[1:-1])


def has_dropout(job: TrainJob) -> bool:
    """Whether rows come with the numbers of their tokens."""
    return isinstance(job.adapter, Lora) and job.adapter.lora_dropout > 0


def put_on_dropout(job: TrainJob, network: nn.Cell) -> nn.Cell:
    """Replace the dropout of every LoRA layer, if the job has any, before the network is compiled.

    Returns:
        The network, or one around it that takes the numbers of tokens as one more column.
    """
    if not has_dropout(job):
        return network
    shape = (job.batch, compiled_length(job.row_length))
    tokens = ms.Parameter(ms.Tensor(np.zeros(shape, np.int32)), name="dropout_tokens", requires_grad=False)
    peft_names = {ours: name for name, ours in names_of_trained(read_model_config(job.model), job.lora).items()}
    for _, cell in network.cells_and_names():
        if isinstance(cell, LoRADense | NF4LoraLinear):
            matrix = cell.mindpet_delta_lora_a
            channels = channel_numbers(module_of_matrix(peft_names[matrix.name]), matrix.shape[1])
            cell.lora_dropout = FormulaDropout(job.lora.lora_dropout, tokens, channels)
    return NumberedTokens(network, tokens)
