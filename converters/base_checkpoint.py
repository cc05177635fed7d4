"""What a MindFormers network holds of a Hugging Face folder: weights, or the NF4 codes of them, and the file of it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import cache_folder, new_folder, sha256_file, sha256_json, write_json
from twintune.backends.job import Quantization
from twintune.converters.mindspore_checkpoint import write_checkpoint
from twintune.converters.names import base_names, base_shapes
from twintune.converters.nf4 import BLOCK_SIZE, dequantize_absmax, quantize_absmax, quantize_nf4
from twintune.converters.weights import find_weights, renamed, weight_files
from twintune.errors import raise_collected

CHECKPOINT = "base.ckpt"
ABSMAX = ".absmax"  # after the weight's name, as in bitsandbytes' state dicts


def quantized_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that 4-bit loading quantizes, by Hugging Face name: the decoder's linear layers.

    Those of transformers' BitsAndBytesConfig: embeddings, head, norms and biases stay as they are.
    """
    shapes = base_shapes(config).items()
    return {name: shape for name, shape in shapes if ".layers." in name and len(shape) == 2}


def quantized(
    tensors: Iterable[tuple[str, NDArray[Any]]], names: Iterable[str], quantization: Quantization
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Codes and absmax in place of some weights: under their names, and under these with ABSMAX appended.

    Args:
        tensors: weights by name; those that are not quantized are passed on.
        names: of what is quantized.
        quantization: absmax is float32 all the same; double quantization rounds it to what 8 bits can say.
    """
    chosen = set(names)
    for name, tensor in tensors:
        if name not in chosen:
            yield name, tensor
            continue
        codes, absmax = quantize_nf4(tensor.astype(np.float32), BLOCK_SIZE)
        yield name, codes
        yield name + ABSMAX, dequantize_absmax(quantize_absmax(absmax)) if quantization.double_quant else absmax


def network_tensors(
    folder: Path, config: Mapping[str, Any], dtype: str, quantization: Quantization | None = None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """What a MindFormers network holds of a folder, by its parameters' names, one tensor at a time.

    Args:
        folder: Hugging Face folder.
        config: its checked config.json.
        dtype: to which weights are rounded, float32, float16 or bfloat16; before they are quantized, as transformers
            does.
        quantization: of quantized_shapes, if they are to be quantized.

    Raises:
        UserError: as find_weights, for every weight too large for `dtype`, or whose blocks would not be whole.
    """
    names = base_names(config)
    stored = find_weights(folder, config).tensors
    if quantization is None:
        yield from renamed(stored, names, dtype)
        return
    shapes = quantized_shapes(config)
    raise_collected(
        f"{folder}: {name} must have a multiple of {BLOCK_SIZE} numbers to be quantized on MindSpore, got "
        f"{list(shape)}; set model.load_in_4bit to false, or train with --backend cuda"
        for name, shape in shapes.items()
        if math.prod(shape) % BLOCK_SIZE
    )
    yield from quantized(renamed(stored, names, dtype), (names[name] for name in shapes), quantization)


def base_checkpoint(
    folder: Path, config: Mapping[str, Any], dtype: str, quantization: Quantization | None = None
) -> Path:
    """The MindFormers .ckpt of a Hugging Face folder, converted once and cached by the hash of both.

    Args:
        folder: Hugging Face folder.
        config: its checked config.json.
        dtype: float32, float16 or bfloat16, as the network will hold the weights.
        quantization: of quantized_shapes, if they are to be quantized.

    Returns:
        Path of a `base.ckpt` that `load_param_into_net` takes whole.

    Raises:
        UserError: as network_tensors.
    """
    source = {file.name: sha256_file(file) for file in weight_files(folder)}
    settings: dict[str, Any] = {"dtype": dtype}
    if quantization:
        settings["quantization"] = asdict(quantization)
    key = sha256_json({"source": source, "config": base_names(config), **settings})
    cached = cache_folder() / "base" / key
    if not cached.is_dir():
        with new_folder(cached) as aside:
            write_checkpoint(aside / CHECKPOINT, network_tensors(folder, config, dtype, quantization))
            write_json(aside / "manifest.json", {"source": source, **settings, "file": CHECKPOINT})
    return cached / CHECKPOINT
