"""Sharded safetensors as transformers writes them, one tensor in memory at a time.

The plan is made from dtypes and shapes alone, so that headers come first and each tensor goes to its place in its
file as it is given. safetensors' own writer wants all tensors of a file at once.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import write_json
from twintune.converters.stored_tensors import StoredTensor, TensorSpec, raw_bytes
from twintune.errors import UserError, raise_collected

INDEX = "model.safetensors.index.json"
SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# In the order in which safetensors puts them into a file, last first.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANKS = {name: rank for rank, name in enumerate(DTYPES)}


def parse_shard_size(text: str) -> int:
    """Bytes of a size such as `5GB`, spelled as in transformers' max_shard_size (a GB is 10^9 bytes).

    Raises:
        UserError: for any other spelling.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", text.strip().upper())
    size = int(float(found[1]) * SIZE_UNITS[found[2]]) if found else 0
    if size < 1:
        raise UserError(f"command line: --max-shard-size must be a size such as 5GB or 500MB, got {text!r}")
    return size


def write_sharded(
    folder: Path,
    tensors: Iterable[tuple[str, NDArray[Any]]],
    specs: Mapping[str, TensorSpec],
    max_shard_size: int,
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """Write tensors into `model.safetensors`, or into shards where they do not fit into one.

    With an index for transformers (`write_index`) this is what its save_pretrained writes, byte for byte.

    Args:
        folder: to write into; new_folder makes it whole or absent.
        tensors: each tensor once, in any order; one is held at a time.
        specs: dtype and shape of each; their order decides which shard a tensor goes to.
        max_shard_size: bytes of tensors in a file; a larger tensor gets a file of its own.
        metadata: text for each file's header, {"format": "pt"} for transformers.

    Returns:
        File name by tensor name.

    Raises:
        UserError: for every tensor that comes twice, is not in `specs`, differs from them, or does not come.
    """
    places: dict[str, StoredTensor] = {}
    for file, names in _named_shards(folder, plan_shards(specs, max_shard_size)):
        places |= _start_file(file, {name: specs[name] for name in names}, metadata)
    problems = []
    missing = set(specs)
    for name, tensor in tensors:
        if name not in missing:
            problems.append(f"{folder}: {name} must be given once and be in the plan, got it otherwise")
        elif (spec := TensorSpec(tensor.dtype, tensor.shape)) != specs[name]:
            problems.append(f"{folder}: {name} must be {specs[name]}, got {spec}")
        else:
            _put(places[name], tensor)
        missing.discard(name)
    raise_collected(problems + [f"{folder}: {name} must be given, got no such tensor" for name in sorted(missing)])
    return {name: place.file.name for name, place in places.items()}


def plan_shards(specs: Mapping[str, TensorSpec], max_shard_size: int) -> list[list[str]]:
    """The names of each file's tensors, shared out as huggingface_hub.split_torch_state_dict_into_shards does."""
    shards: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, spec in specs.items():
        if spec.nbytes > max_shard_size:
            shards.append([name])
            continue
        if size + spec.nbytes > max_shard_size:
            shards.append(current)
            current, size = [], 0
        current.append(name)
        size += spec.nbytes
    return [*shards, current] if current else shards


def _named_shards(folder: Path, shards: Sequence[list[str]]) -> Iterator[tuple[Path, list[str]]]:
    for number, names in enumerate(shards, start=1):
        suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        yield folder / f"model{suffix}.safetensors", names


def _start_file(file: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Write a file's header, stretch the file to its size, and say where each tensor goes."""
    spans: dict[str, tuple[int, int]] = {}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in sorted(specs, key=lambda name: (-RANKS[DTYPE_NAMES[specs[name].dtype]], name)):
        spans[name] = (end, specs[name].nbytes)
        header[name] = {
            "dtype": DTYPE_NAMES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [end, end := end + specs[name].nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        start = stream.tell()
        stream.truncate(start + end)
    return {
        name: StoredTensor(file, specs[name], ((start + offset, length),)) for name, (offset, length) in spans.items()
    }


def _put(place: StoredTensor, tensor: NDArray[Any]) -> None:
    with place.file.open("r+b") as stream:
        stream.seek(place.spans[0][0])
        stream.write(raw_bytes(tensor))


def write_index(folder: Path, weight_map: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> None:
    """Write transformers' `model.safetensors.index.json` if the tensors lie in more than one file.

    Args:
        folder: that write_sharded wrote into.
        weight_map: what it returned.
        specs: what it was given.
    """
    if len(set(weight_map.values())) < 2:
        return
    total = {
        "total_parameters": sum(spec.count for spec in specs.values()),
        "total_size": sum(spec.nbytes for spec in specs.values()),
    }
    write_json(folder / INDEX, {"metadata": total, "weight_map": dict(sorted(weight_map.items()))})


def read_sharded(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Where each tensor of some safetensors files lies, without reading one.

    Raises:
        UserError: for every file that is torn or no safetensors, dtype that NumPy has not, and tensor in two files.
    """
    found: dict[str, StoredTensor] = {}
    problems = []
    for file in files:
        tensors, odd = _read_header(file)
        problems += odd
        problems += [
            f"{file}: {name} must be in one file only, got it in {found[name].file.name} too; remove the older weights"
            for name in tensors
            if name in found
        ]
        found |= {name: tensor for name, tensor in tensors.items() if name not in found}
    raise_collected(problems)
    return found


def _read_header(file: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):  # checks the header and that its offsets cover the file; reads no tensor
            pass
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    except (OSError, SafetensorError) as error:
        return {}, [f"{file}: must be a whole safetensors file, got: {error}"]
    header.pop("__metadata__", None)
    odd = [
        f"{file}: {name} must have one of the dtypes {', '.join(DTYPES)}, got {entry['dtype']}"
        for name, entry in header.items()
        if entry["dtype"] not in DTYPES
    ]
    return {
        name: StoredTensor(
            file, TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"])), (_span(8 + size, *entry["data_offsets"]),)
        )
        for name, entry in header.items()
        if entry["dtype"] in DTYPES
    }, odd


def _span(base: int, start: int, end: int) -> tuple[int, int]:
    return base + start, end - start
