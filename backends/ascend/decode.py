"""A model loaded into MindFormers' network: logits of whole rows, and decoding with a cache of ours or of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.wrapper.wrapper import get_real_models
from numpy.typing import NDArray

from twintune.backends.ascend.cached_batch import CachedBatch
from twintune.backends.ascend.nf4 import put_on_nf4
from twintune.backends.ascend.paged_batch import (
    CACHES,
    PagedBatch,
    blocks_for,
    put_on_paged_context,
    put_on_paged_settings,
)
from twintune.backends.ascend.parameters import (
    check_base,
    names_of_trained,
    parameters_by_name,
    put_in,
    read_adapter_of,
)
from twintune.backends.ascend.profile import compiled_length, context, model_section, put_on_adapter_section
from twintune.backends.ascend.runtime import build
from twintune.backends.job import PrefixTuning, Quantization
from twintune.converters.base_checkpoint import network_tensors
from twintune.converters.nf4 import BLOCK_SIZE
from twintune.models import read_model_config


class MindFormersModel:
    """The LanguageModel protocol over a MindFormers network with its adapter, or without.

    One network at a time is held: for whole rows and our cache (`static`), or with MindFormers' own cache (`paged`).
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None,
        *,
        pad_token_id: int,
        device: str,
        dtype: str,
        quantization: Quantization | None = None,
        cache_implementation: str = "static",
    ) -> None:
        self.pad_token_id = pad_token_id
        self.config = read_model_config(model)
        self.model = model
        self.adapter = None if adapter is None else read_adapter_of(adapter, self.config)
        self.device = device
        self.dtype = dtype
        self.quantization = quantization
        self.paged = cache_implementation == "paged"
        self.length = 0
        self.blocks = 0  # of a paged cache in the network
        self.batch: CachedBatch | PagedBatch | None = None

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Logits of every position, one float32 [length, vocabulary] array a row."""
        self._build(max(map(len, rows)))
        logits = self.network(self._padded(rows))[0].asnumpy()
        return [array[: len(row)] for array, row in zip(logits, rows, strict=True)]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin decoding; float32 [prompts, vocabulary]. Raises UserError for texts beyond the model's positions."""
        tokens = max(map(len, prompts)) + max_new_tokens
        if self.paged:
            self._build(tokens, len(prompts) * blocks_for(tokens))
        elif not self.length:
            self._build(tokens)
        if self.batch is None:
            self.batch = self._new_batch()
        return self.batch.start(prompts, max_new_tokens)

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Put prompts, none longer than those of start, where rows ended; float32 [prompts, vocabulary]."""
        return self._started().replace(places, prompts)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to every row; float32 [prompts, vocabulary]."""
        return self._started().step(tokens)

    def _started(self) -> CachedBatch | PagedBatch:
        if self.batch is None:
            raise RuntimeError("start comes first, and again after logits of longer rows than any before")
        return self.batch

    def _new_batch(self) -> CachedBatch | PagedBatch:
        network = get_real_models(self.network)
        if self.paged:
            return PagedBatch(network, self.pad_token_id, self.config["max_position_embeddings"])
        told = None if self.adapter is None else self.adapter[0]
        virtual_tokens = told.num_virtual_tokens if isinstance(told, PrefixTuning) else 0
        positions = self.config["max_position_embeddings"] - virtual_tokens
        return CachedBatch(network, self.pad_token_id, positions, virtual_tokens)

    def _padded(self, rows: Sequence[Sequence[int]]) -> ms.Tensor:
        padded = np.full((len(rows), self.length), self.pad_token_id, np.int32)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
        return ms.Tensor(padded)

    def _build(self, tokens: int, blocks: int = 0) -> None:
        """Build the network for a length, and with a paged cache of so many blocks, unless it is there.

        Longer texts need another network, as its rotary tables are fixed, and so does a larger cache.
        """
        if tokens <= self.length and blocks <= self.blocks and (blocks > 0) == (self.blocks > 0):
            return
        self.length, self.blocks = compiled_length(tokens), blocks
        self.batch = None  # its graphs are of the network that goes
        section = model_section(
            self.config,
            batch_size=1,
            seq_length=self.length,
            pad_token_id=self.pad_token_id,
            device=self.device,
            dtype=self.dtype,
        )
        place = context(self.device)
        if blocks:
            put_on_paged_settings(section["model_config"], blocks)
            put_on_paged_context(place)
        else:  # flash attention's mask is for MindFormers' own generation loop
            section["model_config"]["use_flash_attention"] = False
        if self.adapter is not None:
            put_on_adapter_section(section, self.adapter[0], self.dtype)
        self.network = build(section, place)
        if self.quantization is not None:
            put_on_nf4(self.network, BLOCK_SIZE)
        self.network.set_train(False)
        parameters = parameters_by_name(self.network)
        self._load({name: weight for name, weight in parameters.items() if not name.endswith(CACHES)})

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
