"""A model with another number of embeddings, as a folder of its own that everything else takes for any model's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from twintune.artifacts import cache_folder, new_folder, sha256_file, sha256_json, write_json
from twintune.converters.companions import copy_companions
from twintune.converters.fast_tokenizer import missing_tokens, save_fast_tokenizer
from twintune.converters.saved_modules import MODULES
from twintune.converters.sharded import write_index, write_sharded
from twintune.converters.stored_tensors import StoredTensor, TensorSpec, rounded
from twintune.converters.tokenizer import Tokenizer
from twintune.converters.tokens import FAST_FILES, load_tokenizer, tokenizer_hash
from twintune.converters.weights import find_weights, weight_files
from twintune.errors import UserError, raise_collected
from twintune.models import CONFIG

SHARD_SIZE = 5 * 10**9  # bytes, as transformers has it
TOKENS_OF_CONFIG = ("bos_token_id", "eos_token_id", "pad_token_id")


def embedding_rows(tokens: int, multiple: int) -> int:
    """So many tokens, rounded up to a multiple."""
    return -(-tokens // multiple) * multiple


def resized_model(
    folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, added_tokens: Sequence[str], multiple: int
) -> Path:
    """The model with a row for each token of its tokenizer, rounded up to a multiple; made once, in the cache.

    Rows beyond the tokenizer are dropped. A new row is the mean of the old ones: transformers'
    resize_token_embeddings(mean_resizing=True), without the noise that it adds at 1e-9 of their covariance
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Its tokenizer files have the added tokens.

    Args:
        folder: Hugging Face folder.
        config: its checked config.json.
        tokenizer: its tokenizer with the added tokens.
        added_tokens: model.added_tokens.
        multiple: model.pad_to_multiple_of.

    Returns:
        `folder` itself if it has these rows and tokens already.

    Raises:
        UserError: what find_weights raises; for a token of config.json that has no row any more, and for a
            tokenizer to which no token can be added.
    """
    rows = embedding_rows(tokenizer.vocab_size, multiple)
    added = _tokens_to_add(folder, added_tokens)
    if rows == config["vocab_size"] and not added:
        return folder
    source = {file.name: sha256_file(file) for file in (*weight_files(folder), folder / CONFIG)}
    key = sha256_json({"source": source, "tokenizer": tokenizer_hash(folder), "added_tokens": added, "rows": rows})
    resized = cache_folder() / "models" / f"{folder.name}-{rows}-{key[:16]}"
    resized.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(resized.with_name(f".{resized.name}.lock")):
        if not resized.is_dir():
            with new_folder(resized) as aside:
                _write_model(folder, config, rows, aside)
                if added:
                    _write_tokenizer(folder, tokenizer, added_tokens, aside)
    return resized


def _tokens_to_add(folder: Path, added_tokens: Sequence[str]) -> tuple[str, ...]:
    if not added_tokens:
        return ()
    if not any((folder / name).is_file() for name in FAST_FILES):
        raise UserError(
            f"{folder}: model.added_tokens with model.pad_to_multiple_of must have a tokenizer with {FAST_FILES[0]}, "
            "got a SentencePiece model alone, into which transformers reads no tokens; save it once with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return missing_tokens(folder, added_tokens)


def _write_model(folder: Path, config: Mapping[str, Any], rows: int, aside: Path) -> None:
    tensors = find_weights(folder, config).tensors
    specs = {name: _resized_spec(name, tensor.spec, rows) for name, tensor in tensors.items()}
    files = write_sharded(aside, _resized(tensors, specs), specs, SHARD_SIZE, {"format": "pt"})
    write_index(aside, files, specs)
    copy_companions(folder, aside, {tensor.spec.dtype.name for tensor in tensors.values()})
    said = json.loads((aside / CONFIG).read_text(encoding="utf-8"))
    raise_collected(
        f"{folder / CONFIG}: {key} must be below the {rows} rows that model.pad_to_multiple_of leaves, got {said[key]}"
        for key in TOKENS_OF_CONFIG
        if isinstance(said.get(key), int) and said[key] >= rows
    )
    write_json(aside / CONFIG, said | {"vocab_size": rows})


def _resized_spec(name: str, spec: TensorSpec, rows: int) -> TensorSpec:
    whole = name.rpartition(".")[0] in MODULES.values()
    return TensorSpec(spec.dtype, (rows, *spec.shape[1:])) if whole else spec


def _resized(
    tensors: Mapping[str, StoredTensor], specs: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, tensor in tensors.items():
        weight = tensor.read()
        yield name, weight if tensor.spec == specs[name] else with_rows(weight, specs[name].shape[0])


def with_rows(weight: NDArray[Any], rows: int) -> NDArray[Any]:
    """A matrix or bias with its first rows, and the mean of all its rows for each that it had not.

    Args:
        weight: [old rows, ...].
        rows: that the result has.
    """
    mean = weight.mean(axis=0, dtype=np.float64).astype(np.float32)
    new = np.broadcast_to(rounded(mean, weight.dtype), (max(0, rows - len(weight)), *weight.shape[1:]))
    return np.concatenate([weight[:rows], new])


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, added_tokens: Sequence[str], aside: Path) -> None:
    save_fast_tokenizer(folder, aside, added_tokens)
    written = load_tokenizer(aside, tokenizer.pad.value)
    if (written.special_tokens, written.vocab_size) != (tokenizer.special_tokens, tokenizer.vocab_size):
        raise UserError(
            f"{folder}: the tokenizer must read back with the ids of model.added_tokens, got "
            f"{written.special_tokens} in place of {tokenizer.special_tokens}"
        )
