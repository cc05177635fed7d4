"""Logits of whole rows, and decoding step by step with a key-value cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.cuda.device import choose_device, choose_dtype
from twintune.backends.cuda.model import autocast, load_base
from twintune.backends.cuda.prefix import has_prefix, prefix_arguments, put_on_any_adapter, virtual_tokens
from twintune.backends.job import Quantization
from twintune.converters.adapter import read_any_adapter
from twintune.errors import UserError


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
        self._causal = model.get_base_model() if has_prefix(model) else model
        self._virtual_tokens = virtual_tokens(model)
        self._pad_token_id = pad_token_id
        self._device = device
        self._dtype = dtype
        self._cache: Any = None
        self._mask: Any = None  # int64 [prompts, virtual and other tokens so far], 0 on the padding left of a prompt

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Logits of every position, one float32 [length, vocabulary] array a row."""
        ids, mask = self._batch(rows, left=False)
        with torch.inference_mode(), autocast(self._device, self._dtype):
            before = prefix_arguments(self._model, len(rows))
            logits = self._causal(input_ids=ids, attention_mask=mask, use_cache=False, **before).logits
        return [_to_numpy(logits[number, : len(row)]) for number, row in enumerate(rows)]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin decoding a batch; logits after the last token of each prompt, float32 [prompts, vocabulary].

        Raises:
            UserError: if the longest prompt and its new tokens go beyond the model's positions.
        """
        self._require_room(max(map(len, prompts)), max_new_tokens)
        ids, self._mask = self._batch(prompts, left=True)
        with torch.inference_mode():
            self._cache = prefix_arguments(self._model, len(prompts)).get("past_key_values")
        return self._forward(ids, (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, self._virtual_tokens :])

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; logits after it, float32 [prompts, vocabulary]."""
        ids = torch.from_numpy(tokens).to(self._device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        return self._forward(ids, self._mask.sum(dim=1, keepdim=True) - 1)

    def _forward(self, ids: Any, positions: Any) -> NDArray[np.float32]:
        with torch.inference_mode(), autocast(self._device, self._dtype):
            output = self._causal(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = output.past_key_values
        return _to_numpy(output.logits[:, -1])

    def _batch(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Any, Any]:
        """input_ids [rows, longest], padded on the left or right, and attention_mask with the prefix, int64."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self._pad_token_id)
        prefix = torch.ones((len(rows), self._virtual_tokens), dtype=torch.int64)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[number, place] = torch.tensor(row, dtype=torch.int64)
            mask[number, place] = 1
        return ids.to(self._device), torch.cat([prefix, mask], dim=1).to(self._device)

    def _require_room(self, prompt: int, new: int) -> None:
        positions = self._model.config.max_position_embeddings - self._virtual_tokens
        if prompt + new > positions:
            raise UserError(
                f"generate.max_new_tokens and the prompt must fit the model's {positions} positions, "
                f"got {prompt} prompt tokens and {new} new ones; shorten one of them"
            )


def _to_numpy(logits: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = logits.float().cpu().numpy()
    return array
