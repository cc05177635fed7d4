"""The weights of a model with its adapter put in: W + lora_alpha / r * B A, one tensor at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Lora
from twintune.converters.adapter import PEFT_PREFIX, A, B
from twintune.converters.names import base_names
from twintune.converters.sharded import read_sharded
from twintune.converters.stored_tensors import WEIGHT_DTYPES, TensorSpec
from twintune.converters.weights import read_weights, weight_files
from twintune.errors import UserError


def merged_weights(
    model: Path, config: Mapping[str, Any], lora: Lora, tensors: Mapping[str, NDArray[np.float32]], dtype: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every weight by its Hugging Face name; sums are float32, and rounded to `dtype` once, at the end.

    Args:
        model: Hugging Face folder.
        config: its checked config.json; tied embeddings come once, as they are stored.
        lora: rank and strength.
        tensors: the adapter's matrices by PEFT name.
        dtype: float32, float16 or bfloat16.

    Raises:
        UserError: if a weight is missing or unexpected, or does not fit into `dtype`.
    """
    scaling = np.float32(lora.lora_alpha / lora.r)
    for name, weight in read_weights(model, config):
        matrices = f"{PEFT_PREFIX}{name.removesuffix('weight')}"
        if matrices + A in tensors:
            weight = weight + scaling * (tensors[matrices + B] @ tensors[matrices + A])
        with np.errstate(over="ignore"):  # told below, by name
            rounded = weight.astype(WEIGHT_DTYPES[dtype])
        if not np.isfinite(rounded).all():
            raise UserError(
                f"{model}: {name} must be finite in {dtype}, got NaN, infinity or values up to "
                f"{np.abs(weight).max():.3g}; merge in float32 or bfloat16"
            )
        yield name, rounded


def merged_specs(model: Path, config: Mapping[str, Any], dtype: str) -> dict[str, TensorSpec]:
    """What merged_weights will give, in the order of the shards."""
    stored = read_sharded(weight_files(model))
    return {
        name: TensorSpec(WEIGHT_DTYPES[dtype], stored[name].spec.shape) for name in base_names(config) if name in stored
    }
