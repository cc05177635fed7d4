"""Prefix tuning's adapter folders as PEFT reads them, and the numbers that training begins with."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import PrefixTuning
from twintune.converters.adapter_settings import CONFIG
from twintune.errors import UserError, raise_collected

PEFT_TYPE = "PREFIX_TUNING"
PROMPT = "prompt_embeddings"  # PEFT's name for keys and values, made of whatever is trained
ENCODER = "prefix_encoder.safetensors"  # the trained parameters, where keys and values are made by a network
EMBEDDING = "prompt_encoder.embedding.weight"
MINDSPORE_NAMES = {
    EMBEDDING: "prefix.embedding",
    "prompt_encoder.transform.0.weight": "prefix.weight_in",
    "prompt_encoder.transform.0.bias": "prefix.bias_in",
    "prompt_encoder.transform.2.weight": "prefix.weight_out",
    "prompt_encoder.transform.2.bias": "prefix.bias_out",
}
NUMBERS = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
Tensors = dict[str, NDArray[np.float32]]


def prefix_shapes(prefix: PrefixTuning) -> dict[str, tuple[int, ...]]:
    """The shape of every trained parameter, by its name in PEFT's network.

    PEFT's PrefixEncoder: an embedding of [virtual tokens, layers * 2 * token_dim], or one of [virtual tokens,
    token_dim] with two linear layers and a tanh between.
    """
    tokens, hidden, width = prefix.num_virtual_tokens, prefix.encoder_hidden_size, keys_and_values(prefix)
    if hidden is None:
        return {EMBEDDING: (tokens, width)}
    return {
        EMBEDDING: (tokens, prefix.token_dim),
        "prompt_encoder.transform.0.weight": (hidden, prefix.token_dim),
        "prompt_encoder.transform.0.bias": (hidden,),
        "prompt_encoder.transform.2.weight": (width, hidden),
        "prompt_encoder.transform.2.bias": (width,),
    }


def keys_and_values(prefix: PrefixTuning) -> int:
    """Numbers that one virtual token has: layer by layer its keys, then its values."""
    return prefix.num_layers * 2 * prefix.token_dim


def prefix_names(prefix: PrefixTuning) -> dict[str, str]:
    """Every trained parameter, its name in PEFT's network to that in ours on MindSpore; no transpose lies between."""
    return {name: MINDSPORE_NAMES[name] for name in prefix_shapes(prefix)}


def make_initial_prefix(prefix: PrefixTuning, seed: int) -> Tensors:
    """Draw what training begins with, from torch's own distributions: nn.Embedding's and nn.Linear's.

    Args:
        prefix: the adapter's sizes.
        seed: of NumPy's PCG64, whose stream is the same on every machine.

    Returns:
        float32 arrays of prefix_shapes: the embedding standard normal, weights and biases of the linear layers
        uniform within 1 / sqrt(in).
    """
    draw = np.random.default_rng(seed)
    tensors = {}
    bound = 1.0
    for name, shape in prefix_shapes(prefix).items():
        if name == EMBEDDING:
            numbers = draw.standard_normal(shape)
        else:
            bound = 1 / math.sqrt(shape[1]) if len(shape) == 2 else bound  # a bias follows its weight
            numbers = draw.uniform(-bound, bound, shape)
        tensors[name] = numbers.astype(np.float32)
    return tensors


def prompt_embeddings(prefix: PrefixTuning, tensors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Keys and values of the virtual tokens, float32 [virtual tokens, layers * 2 * token_dim].

    Args:
        prefix: the adapter's sizes.
        tensors: of prefix_shapes.
    """
    tokens = tensors[EMBEDDING]
    if prefix.encoder_hidden_size is None:
        return tokens
    weight_in, bias_in, weight_out, bias_out = (tensors[name] for name in prefix_shapes(prefix) if name != EMBEDDING)
    made: NDArray[np.float32] = np.tanh(tokens @ weight_in.T + bias_in) @ weight_out.T + bias_out
    return made


def write_prefix(folder: Path, prefix: PrefixTuning, tensors: Mapping[str, NDArray[np.float32]], weights: str) -> None:
    """Write the tensors of an adapter folder: what PEFT reads, and what training goes on from where that differs.

    Args:
        folder: exists, and becomes the adapter.
        prefix: the adapter's sizes.
        tensors: of prefix_shapes.
        weights: name of PEFT's file.
    """
    from safetensors.numpy import save_file

    save_file({PROMPT: prompt_embeddings(prefix, tensors)}, folder / weights, metadata={"format": "pt"})
    if prefix.encoder_hidden_size is not None:
        save_file(dict(tensors), folder / ENCODER)


def prefix_settings(prefix: PrefixTuning, base_model: str) -> dict[str, Any]:
    """The adapter_config.json, as PEFT's PrefixTuningConfig writes it."""
    return {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "num_virtual_tokens": prefix.num_virtual_tokens,
        "num_layers": prefix.num_layers,
        "num_attention_heads": prefix.num_attention_heads,
        "token_dim": prefix.token_dim,
        "num_transformer_submodules": 1,
        "prefix_projection": prefix.encoder_hidden_size is not None,
        "encoder_hidden_size": prefix.encoder_hidden_size,
        "inference_mode": True,
    }


def is_prefix(folder: Path) -> bool:
    """Whether an adapter folder says that it is of prefix tuning; what is broken in it, its own reader tells."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("peft_type") == PEFT_TYPE


def read_prefix_config(folder: Path) -> PrefixTuning:
    """What an adapter_config.json of prefix tuning says.

    Raises:
        UserError: for every number that is missing or wrong.
    """
    path = folder / CONFIG
    settings = json.loads(path.read_text(encoding="utf-8"))
    wanted = [*NUMBERS, *(["encoder_hidden_size"] if settings.get("prefix_projection") else [])]
    numbers = {key: settings.get(key) for key in wanted}
    raise_collected(
        f"{path}: {key} must be a whole number of at least 1, got {value!r}"
        for key, value in numbers.items()
        if type(value) is not int or value < 1
    )
    return PrefixTuning(**{"encoder_hidden_size": None, **numbers})


def read_prefix(folder: Path, weights: str) -> tuple[PrefixTuning, Tensors]:
    """Settings and keys and values of an adapter, as one embedding whatever they were made by.

    Args:
        folder: PEFT folder.
        weights: name of its file.

    Raises:
        UserError: for a missing or broken file, and tensors that are not those of the settings.
    """
    told = read_prefix_config(folder)
    plain = PrefixTuning(told.num_virtual_tokens, None, told.num_layers, told.num_attention_heads, told.token_dim)
    shapes = {PROMPT: prefix_shapes(plain)[EMBEDDING]}
    return plain, {EMBEDDING: _read(folder / weights, shapes)[PROMPT]}


def read_prefix_to_train(folder: Path, weights: str) -> tuple[PrefixTuning, Tensors]:
    """As read_prefix, but what is trained: the network, where keys and values are made by one.

    Raises:
        UserError: as read_prefix.
    """
    told = read_prefix_config(folder)
    if told.encoder_hidden_size is None:
        return read_prefix(folder, weights)
    return told, _read(folder / ENCODER, prefix_shapes(told))


def _read(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then reads
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file}: the adapter must have this file, got nothing") from None
    except SafetensorError as error:
        raise UserError(f"{file}: the adapter must be a whole safetensors file, got: {error}") from None
    raise_collected(_problems(file, tensors, shapes))
    return {name: tensors[name].astype(np.float32) for name in shapes}


def _problems(file: Path, tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = [f"{file}: {name} must be there, got no such tensor" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            problems.append(f"{file}: it must hold {', '.join(shapes)}, got {name} besides")
        elif tensor.shape != shapes[name]:
            problems.append(f"{file}: {name} must be {list(shapes[name])}, got {list(tensor.shape)}")
        elif not np.isfinite(tensor).all():
            problems.append(f"{file}: {name} must be finite, got NaN or infinity")
    return problems
