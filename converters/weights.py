"""Base weights of a Hugging Face folder, every parameter accounted for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.converters.names import base_names, base_shapes
from twintune.converters.sharded import read_sharded
from twintune.converters.stored_tensors import WEIGHT_DTYPES, StoredTensor
from twintune.errors import UserError, raise_collected

# Buffers that old Hugging Face files carry; both frameworks compute them from the configuration.
DERIVED = "rotary_emb.inv_freq"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"  # in both frameworks
BUFFERS = "computed buffers"
TIED_HEAD = "copy of the tied embedding"


@dataclass(frozen=True)
class BaseWeights:
    """Base weights in files.

    Attributes:
        tensors: all that a model has, and no other, by Hugging Face name, in the order of base_names.
        left_out: how many entries of the files are not among them, by kind.
    """

    tensors: Mapping[str, StoredTensor]
    left_out: Mapping[str, int]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in name order.

    Raises:
        UserError: if there is none (pickled .bin weights are not read).
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: a model folder must hold model*.safetensors, got none; pickled weights are not read: "
            "save them once with save_pretrained(..., safe_serialization=True)"
        )
    return files


def find_weights(folder: Path, config: Mapping[str, Any]) -> BaseWeights:
    """Where each base weight of a folder lies, in one file or in shards; none is read.

    Args:
        folder: Hugging Face folder.
        config: its checked config.json, which says which weights there must be, and of which shapes.

    Raises:
        UserError: for every weight that is missing, unexpected or of another shape or dtype, all at once; for a
            head that differs from the embedding that it is tied to.
    """
    stored = read_sharded(weight_files(folder))
    names = base_names(config)
    kinds = {name: BUFFERS for name in stored if name.endswith(DERIVED)}
    if config["tie_word_embeddings"] and HEAD in stored:
        kinds[HEAD] = TIED_HEAD
    account(folder, config, stored, {name: name for name in names}, kinds)
    check_tied(folder, stored, EMBEDDING, kinds)
    return BaseWeights({name: stored[name] for name in names}, Counter(kinds.values()))


def account(
    place: Path,
    config: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    left_out: Mapping[str, str],
) -> None:
    """Hold the entries of some files against the weights that a model has.

    Args:
        place: for messages.
        config: the model's checked config.json.
        stored: the entries, by the files' own names.
        names: of every weight there must be, Hugging Face name to the files' own.
        left_out: kind of each entry that is known and no weight.

    Raises:
        UserError: for every weight that is missing, unexpected or of another shape or dtype, all at once.
    """
    shapes = base_shapes(config)
    known = set(names.values()) | left_out.keys()
    problems = [f"{place}: {name} must be in the weights, got no such tensor" for name in known - stored.keys()]
    problems += [
        f"{place}: {name} must not be in the weights of a {config['model_type']}" for name in stored.keys() - known
    ]
    for theirs, name in names.items():
        spec = stored[name].spec if name in stored else None
        if spec and spec.shape != shapes[theirs]:
            problems.append(f"{place}: {name} must be {list(shapes[theirs])} by config.json, got {list(spec.shape)}")
        if spec and spec.dtype not in WEIGHT_DTYPES.values():
            problems.append(f"{place}: {name} must be one of {', '.join(WEIGHT_DTYPES)}, got {spec.dtype.name}")
    raise_collected(sorted(problems))


def check_tied(place: Path, stored: Mapping[str, StoredTensor], embedding: str, left_out: Mapping[str, str]) -> None:
    """Refuse a head that is left out as a copy of the embedding and is none.

    Args:
        place: for messages.
        stored: entries of the files by their own names.
        embedding: the embedding's name there.
        left_out: kind of each entry that is no weight.

    Raises:
        UserError: if it differs.
    """
    if left_out.get(HEAD) == TIED_HEAD and not same_bytes(stored[HEAD], stored[embedding]):
        raise UserError(
            f"{place}: {HEAD} must equal {embedding}, as config.json says tie_word_embeddings: true, got another; "
            "the model has a head of its own: set tie_word_embeddings to false in its config.json"
        )


def same_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors are the same, bit for bit, compared piece by piece."""
    return first.spec == second.spec and all(
        np.array_equal(one.view(np.uint8), other.view(np.uint8))
        for one, other in zip(first.pieces(), second.pieces(), strict=True)
    )


def read_weights(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every base weight of a folder as float32 (exact from float16 and bfloat16), one at a time.

    Args:
        folder: Hugging Face folder.
        config: its checked config.json.

    Raises:
        UserError: as find_weights, before any is given.
    """
    for name, tensor in find_weights(folder, config).tensors.items():
        yield name, tensor.read_as(WEIGHT_DTYPES["float32"])


def renamed(
    tensors: Mapping[str, StoredTensor], names: Mapping[str, str], dtype: str | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Read each tensor under another name, one at a time.

    Args:
        tensors: by Hugging Face name.
        names: Hugging Face name to the name to give.
        dtype: to round to; None keeps each as it is.

    Raises:
        UserError: for every tensor with a number too large for `dtype`, after the last one.
    """
    problems = []
    for name, tensor in tensors.items():
        try:
            yield names[name], tensor.read_as(WEIGHT_DTYPES[dtype] if dtype else tensor.spec.dtype)
        except OverflowError as error:
            problems.append(f"{tensor.file}: {name} must fit the dtype, got a number that does not: {error}")
    raise_collected(problems)
