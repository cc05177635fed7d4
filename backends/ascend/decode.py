"""Logits from MindFormers' network, on any device.

MindFormers' own `use_past` needs NPU kernels, so every token recomputes the row at one fixed length:
one graph for all steps of a batch, and slow for long texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from twintune.backends.ascend.nf4 import put_on_nf4
from twintune.backends.ascend.parameters import (
    check_base,
    names_of_trained,
    parameters_by_name,
    put_in,
    read_adapter_of,
)
from twintune.backends.ascend.profile import compiled_length, context, model_section, put_on_adapter_section
from twintune.backends.ascend.runtime import build
from twintune.backends.job import Quantization
from twintune.converters.base_checkpoint import network_tensors
from twintune.converters.nf4 import BLOCK_SIZE
from twintune.models import read_model_config


class LastLogits(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """The network as a function of ids and lengths: logits after the last token of each row."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: ms.Tensor, lengths: ms.Tensor) -> ms.Tensor:
        """int32 [rows, length] and [rows] to float32 [rows, vocabulary]."""
        return self.network(input_ids, batch_valid_length=lengths)[0]


class MindFormersModel:
    """The LanguageModel protocol over a MindFormers network with its adapter, or without."""

    def __init__(
        self,
        model: Path,
        adapter: Path | None,
        *,
        pad_token_id: int,
        device: str,
        dtype: str,
        quantization: Quantization | None = None,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.config = read_model_config(model)
        self.model = model
        self.adapter = None if adapter is None else read_adapter_of(adapter, self.config)
        self.device = device
        self.dtype = dtype
        self.quantization = quantization
        self.length = 0
        self.rows: list[list[int]] = []

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Logits of every position, one float32 [length, vocabulary] array a row."""
        self._build(max(map(len, rows)))
        logits = self.network(self._padded(rows))[0].asnumpy()
        return [array[: len(row)] for array, row in zip(logits, rows, strict=True)]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin decoding; float32 [prompts, vocabulary]."""
        self._build(max(map(len, prompts)) + max_new_tokens)
        self.rows = [list(prompt) for prompt in prompts]
        return self._last_logits()

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to every row; float32 [prompts, vocabulary]."""
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._last_logits()

    def _last_logits(self) -> NDArray[np.float32]:
        lengths = ms.Tensor([len(row) for row in self.rows], ms.int32)
        logits: NDArray[np.float32] = self.last(self._padded(self.rows), lengths).asnumpy()
        return logits.reshape(len(self.rows), -1)

    def _padded(self, rows: Sequence[Sequence[int]]) -> ms.Tensor:
        padded = np.full((len(rows), self.length), self.pad_token_id, np.int32)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
        return ms.Tensor(padded)

    def _build(self, tokens: int) -> None:
        """Build the network for a length; longer texts need another, as its rotary tables are fixed."""
        if tokens <= self.length:
            return
        self.length = compiled_length(tokens)
        section = model_section(
            self.config,
            batch_size=1,
            seq_length=self.length,
            pad_token_id=self.pad_token_id,
            device=self.device,
            dtype=self.dtype,
        )
        # Flash attention's mask and the paged cache are for MindFormers' own generation loop.
        section["model_config"]["use_flash_attention"] = False
        if self.adapter is not None:
            put_on_adapter_section(section, self.adapter[0], self.dtype)
        self.network = build(section, context(self.device))
        if self.quantization is not None:
            put_on_nf4(self.network, BLOCK_SIZE)
        self.network.set_train(False)
        self._load(parameters_by_name(self.network))
        self.last = LastLogits(self.network)

    def _load(self, parameters: dict[str, Any]) -> None:
        put_in(parameters, network_tensors(self.model, self.config, self.dtype, self.quantization))
        trained: set[str] = set()
        if self.adapter is not None:
            told, tensors = self.adapter
            ours = names_of_trained(self.config, told)
            put_in(parameters, ((ours[name], tensor) for name, tensor in tensors.items()))
            trained.update(ours.values())
        wanted = network_tensors(self.model, self.config, self.dtype, self.quantization)
        check_base(self.model, parameters, wanted, trained)
