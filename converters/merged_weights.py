"""The weights of a model with its adapter put in, one tensor at a time: W + lora_alpha / r * B A, or another W."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Lora
from twintune.converters.adapter import A, B
from twintune.converters.saved_modules import PEFT_PREFIX
from twintune.converters.stored_tensors import WEIGHT_DTYPES, TensorSpec, rounded
from twintune.converters.weights import BaseWeights
from twintune.errors import UserError


def merged_weights(
    base: BaseWeights, lora: Lora, tensors: Mapping[str, NDArray[np.float32]], dtype: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every weight by its Hugging Face name; sums are float32, and rounded to `dtype` once, at the end.

    Args:
        base: tied embeddings come once, as they are stored.
        lora: rank and strength.
        tensors: the adapter's by PEFT name.
        dtype: float32, float16 or bfloat16.

    Raises:
        UserError: if a weight is not finite, or not any more in `dtype`.
    """
    scaling = np.float32(lora.lora_alpha / lora.r)
    for name, stored in base.tensors.items():
        weight = stored.read().astype(np.float32)
        matrices = f"{PEFT_PREFIX}{name.removesuffix('weight')}"
        if PEFT_PREFIX + name in tensors:  # trained whole
            weight = tensors[PEFT_PREFIX + name]
        elif matrices + A in tensors:
            weight += scaling * (tensors[matrices + B] @ tensors[matrices + A])
        if not np.isfinite(weight).all():
            raise UserError(f"{stored.file}: {name} must be finite when merged, got NaN or infinity")
        try:
            yield name, rounded(weight, WEIGHT_DTYPES[dtype])
        except OverflowError as error:
            raise UserError(f"{stored.file}: {name} must fit into {dtype}, but {error}; use another --dtype") from None


def merged_specs(base: BaseWeights, dtype: str) -> dict[str, TensorSpec]:
    """What merged_weights will give, in the order of the shards."""
    return {name: TensorSpec(WEIGHT_DTYPES[dtype], stored.spec.shape) for name, stored in base.tensors.items()}
