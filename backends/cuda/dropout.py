"""The dropout of twintune.dropout in PEFT's LoRA layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from twintune.backends.cuda.device import put_on
from twintune.backends.job import Lora, TrainJob
from twintune.converters.rows import Row
from twintune.dropout import channel_numbers, first_kept, token_numbers


class FormulaDropout(torch.nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """Drop by the product of a token's and a channel's number.

    Args:
        lora_dropout: share of elements that are dropped; the others grow by 1 / (1 - lora_dropout).
        channels: odd numbers, int32 [channels].
    """

    tokens: Any
    channels: Any

    def __init__(self, lora_dropout: float, channels: Any) -> None:
        super().__init__()
        self.lora_dropout = lora_dropout
        self.register_buffer("channels", channels, persistent=False)
        self.register_buffer("tokens", None, persistent=False)  # int32 [rows, length, 1] of the micro-batch

    def forward(self, x: Any) -> Any:
        """[rows, length, channels] to the same, in training mode; as it is in evaluation mode."""
        if not self.training:
            return x
        dropped = self.tokens * self.channels < first_kept(self.lora_dropout)
        return (x * (1 / (1 - self.lora_dropout))).masked_fill(dropped, 0.0)


def put_on_dropout(model: Any, lora: Lora) -> None:
    """Replace the dropout of every LoRA module of a PEFT model, if it has any."""
    if not lora.lora_dropout:
        return
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            channels = torch.from_numpy(channel_numbers(name, module.in_features))
            module.lora_dropout["default"] = FormulaDropout(lora.lora_dropout, channels.to(module.weight.device))


def number_tokens(job: TrainJob, model: Any, batch: Sequence[Row], place: int) -> None:
    """Give the tokens of a micro-batch their numbers; `place` is that of its first row in the whole run."""
    layers = [module for module in model.modules() if isinstance(module, FormulaDropout)]
    if not layers:
        return
    rows = [token_numbers(job.seed, place + number, len(row.input_ids)) for number, row in enumerate(batch)]
    if job.packed:
        numbers = np.concatenate(rows)[None]
    else:
        numbers = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for row, line in zip(rows, numbers, strict=True):
            line[: len(row)] = row
    tokens = put_on(torch.from_numpy(numbers), job.device)[..., None]
    for layer in layers:
        layer.tokens = tokens
