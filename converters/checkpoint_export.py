"""Base weights from a Hugging Face folder to MindFormers' files and back, bit for bit, one tensor at a time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from twintune.artifacts import new_folder, write_json
from twintune.converters.companions import copy_companions
from twintune.converters.mindformers_weights import find_mindformers_weights
from twintune.converters.mindspore_checkpoint import write_checkpoint
from twintune.converters.names import base_names
from twintune.converters.sharded import parse_shard_size, write_index, write_sharded
from twintune.converters.stored_tensors import WEIGHT_DTYPES, StoredTensor, TensorSpec, rounded
from twintune.converters.weights import BaseWeights, find_weights, renamed
from twintune.errors import UserError, raise_collected
from twintune.models import CONFIG, read_model_config

FileFormat = Literal["ckpt", "safetensors", "huggingface"]
CHECKPOINT = "model.ckpt"
# mindspore.load_distributed_checkpoint finds a tensor's file by it; transformers' index lists the same.
NAME_MAP = "param_name_map.json"


@dataclass(frozen=True)
class WeightsExport:
    """What came of an export.

    Attributes:
        folder: that was written.
        files: of weights in it.
        tensors: how many were written, and read back and found equal to the source's, bit for bit after rounding.
        parameters: how many numbers they hold.
        nbytes: their size.
        dtypes: how many tensors have which dtype now.
        rounded: how many tensors had another dtype before.
        left_out: how many entries of the source are no base weights, by kind.
        copied: files beside the weights: configuration, tokenizer, generation settings.
    """

    folder: Path
    files: tuple[str, ...]
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    rounded: int
    left_out: Mapping[str, int]
    copied: tuple[str, ...]


def export_weights(
    source: Path,
    output_dir: Path,
    file_format: FileFormat,
    *,
    model: Path | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    leave_out_lora: bool = False,
) -> WeightsExport:
    """Write base weights for the other framework, read them back, and keep them only if they are the same.

    Args:
        source: for `ckpt` and `safetensors` a Hugging Face folder; for `huggingface` what MindFormers reads: a
            `.ckpt` file, a safetensors file, or a folder of safetensors files.
        output_dir: a new folder.
        file_format: `ckpt`: one `model.ckpt` for MindFormers; `safetensors`: the same in shards, with
            param_name_map.json; `huggingface`: a folder that transformers loads.
        model: for `huggingface` the model folder, or the config.json in it, whose architecture, tokenizer and
            generation settings these weights have.
        dtype: float32, float16 or bfloat16 to round to; None keeps each tensor's own.
        max_shard_size: such as 5GB; a GB is 10^9 bytes.
        leave_out_lora: take the base weights of a checkpoint that has LoRA matrices too.

    Raises:
        UserError: for all that does not fit, all at once where it can be; nothing is left behind then.
    """
    shard_size = parse_shard_size(max_shard_size)
    if dtype is not None and dtype not in WEIGHT_DTYPES:
        raise UserError(f"command line: --dtype must be one of {', '.join(WEIGHT_DTYPES)}, got {dtype!r}")
    folder = _model_folder(source, file_format, model)
    config = read_model_config(folder)
    if file_format == "huggingface":
        found = find_mindformers_weights(source, config, leave_out_lora=leave_out_lora)
    else:
        found = find_weights(source, config)
    specs = {name: _spec(tensor, dtype) for name, tensor in found.tensors.items()}
    with new_folder(output_dir) as aside:
        files = _write(aside, file_format, config, found, specs, dtype, shard_size)
        dtypes = Counter(spec.dtype.name for spec in specs.values())
        copied = copy_companions(folder, aside, dtypes.keys()) if file_format == "huggingface" else ()
        _check_written(output_dir, found, _find_written(aside, file_format, config), specs)
    return WeightsExport(
        folder=output_dir,
        files=files,
        tensors=len(specs),
        parameters=sum(spec.count for spec in specs.values()),
        nbytes=sum(spec.nbytes for spec in specs.values()),
        dtypes=dtypes,
        rounded=sum(spec != found.tensors[name].spec for name, spec in specs.items()),
        left_out=found.left_out,
        copied=copied,
    )


def _model_folder(source: Path, file_format: FileFormat, model: Path | None) -> Path:
    if file_format != "huggingface":
        if model is not None:
            raise UserError(
                f"command line: --model must be left out where {source} is the model, got {model}; "
                "give --to huggingface for the way back"
            )
        return source
    if model is None:
        raise UserError(
            "command line: --model must be the Hugging Face folder whose config.json and tokenizer these weights have, "
            "got nothing; a checkpoint does not hold them"
        )
    return model.parent if model.name == CONFIG else model


def _spec(tensor: StoredTensor, dtype: str | None) -> TensorSpec:
    return TensorSpec(WEIGHT_DTYPES[dtype], tensor.spec.shape) if dtype else tensor.spec


def _write(
    folder: Path,
    file_format: FileFormat,
    config: Mapping[str, Any],
    found: BaseWeights,
    specs: Mapping[str, TensorSpec],
    dtype: str | None,
    shard_size: int,
) -> tuple[str, ...]:
    """Write the weights into a folder; returns the files' names."""
    to_mindformers = base_names(config)
    names = {name: name for name in specs} if file_format == "huggingface" else to_mindformers
    tensors = renamed(found.tensors, names, dtype)
    if file_format == "ckpt":
        write_checkpoint(folder / CHECKPOINT, tensors)
        return (CHECKPOINT,)
    metadata = {"format": "pt" if file_format == "huggingface" else "ms"}
    places = {names[name]: spec for name, spec in specs.items()}
    weight_map = write_sharded(folder, tensors, places, shard_size, metadata)
    files = tuple(sorted(set(weight_map.values())))
    if file_format == "huggingface":
        write_index(folder, weight_map, places)
    elif len(files) > 1:
        write_json(folder / NAME_MAP, {"weight_map": weight_map})
    return files


def _find_written(folder: Path, file_format: FileFormat, config: Mapping[str, Any]) -> BaseWeights:
    if file_format == "huggingface":
        return find_weights(folder, config)
    return find_mindformers_weights(folder / CHECKPOINT if file_format == "ckpt" else folder, config)


def _check_written(
    output_dir: Path, source: BaseWeights, written: BaseWeights, specs: Mapping[str, TensorSpec]
) -> None:
    """Compare what was written with its source, piece by piece.

    Raises:
        UserError: for every tensor that differs.
    """
    raise_collected(
        f"{output_dir}: {name} must be read back as it was written, got another; nothing was kept: check the disk"
        for name, tensor in written.tensors.items()
        if tensor.spec != specs[name] or not _same_values(source.tensors[name], tensor)
    )


def _same_values(source: StoredTensor, written: StoredTensor) -> bool:
    return all(
        np.array_equal(rounded(one, written.spec.dtype).view(np.uint8), other.view(np.uint8))
        for one, other in zip(source.pieces(), written.pieces(), strict=True)
    )
