"""Logits of whole rows, and decoding step by step, rows coming and going, over a cache in memory taken once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.cuda.cache import (
    Cache,
    NextTokens,
    Prefix,
    WholeRows,
    next_tokens,
    prefix_of,
    use_cache_attention,
)
from twintune.backends.cuda.device import choose_device, choose_dtype
from twintune.backends.cuda.model import autocast, load_base, to_numpy
from twintune.backends.cuda.prefix import prefix_arguments, put_on_any_adapter, virtual_tokens
from twintune.backends.job import Quantization
from twintune.backends.room import require_room
from twintune.converters.adapter import read_any_adapter


def load_language_model(
    model: Path,
    adapter: Path | None,
    *,
    pad_token_id: int,
    device: str,
    dtype: str,
    quantization: Quantization | None = None,
) -> "CudaLanguageModel":
    """Load a Hugging Face folder, with a PEFT adapter on it or none, for logits and decoding.

    Raises:
        UserError: if device or dtype cannot be had, or a file does not fit.
    """
    device = choose_device(device).value
    dtype = choose_dtype(dtype, device).value
    loaded = load_base(model, device, dtype, quantization)
    if adapter is not None:
        told, tensors = read_any_adapter(adapter)
        loaded = put_on_any_adapter(loaded, told, tensors, adapter).eval()
    return CudaLanguageModel(loaded, pad_token_id=pad_token_id, device=device, dtype=dtype)


class CudaLanguageModel:
    """The LanguageModel protocol on a transformers model."""

    def __init__(self, model: Any, *, pad_token_id: int, device: str, dtype: str) -> None:
        self._model = model
        # PEFT's own forward puts the prefix before every call, a step on a cache included.
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        use_cache_attention(causal)
        self._decoder = causal.get_decoder()
        self._head = causal.get_output_embeddings()
        self._virtual_tokens = virtual_tokens(model)
        self._pad_token_id = pad_token_id
        self._device = device
        self._dtype = dtype
        self._cache = Cache(0, 0)
        self._lengths: NDArray[np.int64] = np.zeros(0, np.int64)  # of each place, virtual tokens included
        self._longest = 0  # prompt that there is room for

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Logits of every position, one float32 [length, vocabulary] array a row."""
        with self._computing():
            logits = self._head(self._hidden(*self._whole(rows), WholeRows(self._prefix())))
        return [to_numpy(logits[number, : len(row)]) for number, row in enumerate(rows)]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin decoding a batch; logits after the last token of each prompt, float32 [prompts, vocabulary].

        Raises:
            UserError: if the longest prompt and its new tokens go beyond the model's positions.
        """
        self._longest = max(map(len, prompts))
        positions = self._model.config.max_position_embeddings - self._virtual_tokens
        require_room(self._longest, max_new_tokens, positions)
        self._cache = Cache(len(prompts), self._virtual_tokens + self._longest + max_new_tokens)
        self._lengths = np.zeros(len(prompts), np.int64)
        return self.replace(range(len(prompts)), prompts)

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Put prompts at the places of rows that ended; float32 [places, vocabulary].

        Raises:
            ValueError: for a prompt longer than those of `start`.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        if lengths.max() > self._longest:
            raise ValueError(f"a prompt must be no longer than {self._longest} tokens, got {lengths.max()}")
        self._lengths[list(places)] = self._virtual_tokens + lengths
        with self._computing():
            kept = WholeRows(self._prefix(), self._cache, torch.tensor(places, device=self._device))
            hidden = self._hidden(*self._whole(prompts), kept)
            last = torch.from_numpy(lengths - 1).to(self._device)
            return to_numpy(self._head(hidden[torch.arange(len(prompts), device=self._device), last]))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; logits after it, float32 [places, vocabulary]."""
        new = next_tokens(self._cache, self._lengths, self._device)
        self._lengths += 1
        ids = torch.from_numpy(tokens).to(self._device)[:, None]
        with self._computing():
            return to_numpy(self._head(self._hidden(ids, new.slots[:, None], new)[:, 0]))

    def _hidden(self, ids: Any, positions: Any, tokens: WholeRows | NextTokens) -> Any:
        """[rows, tokens, hidden size], what the head takes."""
        return self._decoder(input_ids=ids, position_ids=positions, use_cache=False, tokens=tokens).last_hidden_state

    def _prefix(self) -> Prefix:
        return prefix_of(prefix_arguments(self._model, 1))

    def _whole(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Ids, padded on the right, and positions of whole rows, int64 [rows, longest]."""
        ids = torch.full((len(rows), max(map(len, rows))), self._pad_token_id)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        positions = torch.arange(ids.shape[1]).expand(ids.shape) + self._virtual_tokens
        return ids.to(self._device), positions.to(self._device)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.inference_mode(), autocast(self._device, self._dtype):
            yield
