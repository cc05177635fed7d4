"""Faults of what a run leaves: the sampler, decoding, the saved adapter, the merge."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.parity.fault_places import Patch, cuda, record
from twintune import chat, sampling


def top_p_drops_the_token_that_crosses(patch: Patch) -> None:
    def without_edge(logits: NDArray[np.float32], sampling: Any) -> NDArray[np.float64]:
        scores = logits.astype(np.float64) / sampling.temperature
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        falling = np.argsort(-shares, kind="stable")
        beyond = falling[np.cumsum(shares[falling]) > sampling.top_p]
        shares[beyond[beyond != falling[0]]] = 0
        kept: NDArray[np.float64] = shares / shares.sum()
        return kept

    patch.setattr(sampling, "probabilities", without_edge)


def another_eos(token: int) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        load = chat.load_chat
        from twintune.parity import texts

        def changed(*arguments: Any, **keywords: Any) -> Any:
            loaded = load(*arguments, **keywords)
            loaded.generator.eos_token_ids = frozenset({*loaded.generator.eos_token_ids, token})
            return loaded

        patch.setattr(texts, "load_chat", changed)

    return plant


def attended_padding(patch: Patch) -> None:
    """A short text attends to all that the longest text of its batch has filled."""
    decode = cuda("decode")
    next_tokens = decode.next_tokens

    def changed(*arguments: Any) -> Any:
        return replace(next_tokens(*arguments), visible=None)

    patch.setattr(decode, "next_tokens", changed)


def adapter_saved_in_half(patch: Patch) -> None:
    """The final adapter goes through bfloat16 on its way to the file."""
    train = cuda("train")

    write = train.write_adapter

    def rounded(folder: Path, tensors: Any, *rest: Any) -> None:
        import ml_dtypes

        half = {name: tensor.astype(ml_dtypes.bfloat16).astype(np.float32) for name, tensor in tensors.items()}
        write(folder, half if folder.name == "adapter" else tensors, *rest)

    patch.setattr(train, "write_adapter", rounded)


def merged_with_scaling_one(patch: Patch) -> None:
    merge = record.merged_weights

    def with_scaling_one(base: Any, lora: Any, tensors: Any, dtype: str) -> Any:
        return merge(base, replace(lora, lora_alpha=lora.r), tensors, dtype)

    patch.setattr(record, "merged_weights", with_scaling_one)
