"""Prefix tuning on PyTorch: PEFT's network of keys and values, put before the first token of every row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.cuda.model import adapter_parameters, put_in_adapter, put_on_adapter, wrap
from twintune.backends.job import Lora, PrefixTuning


def put_on_any_adapter(
    base: Any, adapter: Lora | PrefixTuning, tensors: Mapping[str, NDArray[np.float32]], source: Path
) -> Any:
    """Wrap a base model with PEFT's LoRA or prefix tuning. Raises UserError as put_on_adapter and put_on_prefix."""
    if isinstance(adapter, PrefixTuning):
        return put_on_prefix(base, adapter, tensors, source)
    return put_on_adapter(base, adapter, tensors, source)


def put_on_prefix(base: Any, prefix: PrefixTuning, tensors: Mapping[str, NDArray[np.float32]], source: Path) -> Any:
    """Wrap a base model with PEFT's prefix tuning and set all that is trained, float32 by its name in PEFT's network.

    Raises:
        UserError: for every name or shape in which `source` and the model differ.
    """
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=prefix.num_virtual_tokens,
        prefix_projection=prefix.encoder_hidden_size is not None,
        encoder_hidden_size=prefix.encoder_hidden_size,
    )
    model = wrap(base, config)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.float()
    put_in_adapter(model, tensors, str(source))
    return model


def has_prefix(model: Any) -> bool:
    """Whether a model is one of put_on_prefix."""
    return hasattr(model, "prompt_encoder")


def prefix_arguments(model: Any, rows: int) -> dict[str, Any]:
    """What the decoder takes besides the tokens: the prefix as a cache; nothing where the model has none.

    PEFT's own forward passes the same. Positions follow the cache, so that the first token's is num_virtual_tokens.
    """
    return {"past_key_values": model.get_prompt(rows)} if has_prefix(model) else {}


def virtual_tokens(model: Any) -> int:
    """Positions that stand before the first token."""
    return int(model.active_peft_config.num_virtual_tokens) if has_prefix(model) else 0
