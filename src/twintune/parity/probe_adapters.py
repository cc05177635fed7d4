"""Adapters that parity puts into a network: one whose every matrix shows, and one without effect."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

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
