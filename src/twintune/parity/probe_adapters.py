"""Adapters that parity puts into a network: one whose every matrix shows, none at all, and one merged away."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Lora
from twintune.converters.adapter import PEFT_PREFIX

PROBE_BOUND = 0.02  # of the probe adapter's B: B A then moves logits far more than rounding does


def with_random_b(tensors: Mapping[str, NDArray[np.float32]], seed: int) -> dict[str, NDArray[np.float32]]:
    """An adapter with B drawn by seed: with B zero, as training begins, no gradient of A and no scaling shows."""
    draw = np.random.default_rng((seed, 5))
    return {
        name: draw.uniform(-PROBE_BOUND, PROBE_BOUND, tensors[name].shape).astype(np.float32)
        if ".lora_B." in name
        else tensors[name]
        for name in sorted(tensors)
    }


def without_b(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """An adapter without effect."""
    return {name: np.zeros_like(tensor) if ".lora_B." in name else tensor for name, tensor in tensors.items()}


def merged(
    base: Iterable[tuple[str, NDArray[np.float32]]], lora: Lora, tensors: Mapping[str, NDArray[np.float32]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Base weights with lora_alpha / r * B A added where the adapter has matrices, in float32."""
    for name, weight in base:
        prefix = f"{PEFT_PREFIX}{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in tensors:
            product = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
            yield name, weight + np.float32(lora.lora_alpha / lora.r) * product
        else:
            yield name, weight
