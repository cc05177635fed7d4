"""What a bundle says of a run in JSON: the job in portable words, its rows by digest, its weights by hash and size."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune import __version__
from twintune.backends import Name
from twintune.converters import arrow, mindrecord
from twintune.converters.rows import Row
from twintune.models import DEFAULTS, REQUIRED
from twintune.prepared import ARROW, MINDRECORD, Prepared
from twintune.recipe import Recipe
from twintune.training import versions
from twintune.training_plan import Run

# What may differ between two machines that do the same job.
MACHINE_KEYS = {"data": ("preprocessing_num_workers",)}


def describe_run(run: Run) -> dict[str, Any]:
    """Recipe, model and rows of a run, without a folder of this machine in it."""
    summary = asdict(run.prepared.summary)
    return {
        "backend": run.backend.value,
        "device": run.device.value,
        "dtype": run.dtype.value,
        "versions": {"twintune": __version__, **versions()},
        "recipe": portable_recipe(run.recipe),
        "model_config": {key: run.config.get(key) for key in sorted({"model_type", *REQUIRED, *DEFAULTS})},
        "rows": summary,
        "schedule": asdict(run.job.schedule),
    }


def portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON without what belongs to the machine: the backend section and the folders of paths."""
    values = recipe.model_dump(mode="json")
    del values["backend"]
    for section, keys in MACHINE_KEYS.items():
        for key in keys:
            del values[section][key]
    values["model"]["name_or_path"] = PurePath(values["model"]["name_or_path"]).name
    for file in values["data"]["train"]:
        file["path"] = PurePath(file["path"]).name
    return values


def rows_of(prepared: Prepared, backend: Name) -> Iterator[Row]:
    """The rows from the very file that a backend trains on."""
    if backend == "cuda":
        return arrow.read_rows(prepared.folder / ARROW)
    return mindrecord.read_rows(prepared.folder / MINDRECORD)


def row_digest(row: Row) -> int:
    """64 bits over ids, labels and the borders of conversations."""
    digest = hashlib.blake2b(digest_size=8)
    for numbers in (row.input_ids, row.labels, np.array(row.lengths, np.int32)):
        digest.update(len(numbers).to_bytes(8, "little") + np.ascontiguousarray(numbers, "<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def describe_weights(tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> dict[str, dict[str, Any]]:
    """sha256 of float32 bytes, shape, mean and norm of each tensor by name; no two need be in memory at once."""
    return {name: describe_tensor(tensor) for name, tensor in tensors}


def describe_tensor(tensor: NDArray[np.float32]) -> dict[str, Any]:
    """sha256 of a tensor's float32 bytes, its shape, mean and norm in float64."""
    numbers = np.ascontiguousarray(tensor, "<f4")
    exact = numbers.astype(np.float64)
    return {
        "sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
        "shape": list(numbers.shape),
        "mean": float(exact.mean()),
        "norm": float(np.linalg.norm(exact)),
    }


def pieces_of_rows(rows: Iterable[Row], decode: Any) -> dict[str, str]:
    """The text of each token id that occurs in some rows."""
    ids = sorted({int(number) for row in rows for number in row.input_ids})
    return {str(number): decode([number]) for number in ids}


def flat_rows(rows: Mapping[int, Row]) -> dict[str, NDArray[Any]]:
    """Rows as four arrays: their numbers, lengths, and ids and labels one after the other."""
    return {
        "numbers": np.array(sorted(rows), np.int64),
        "lengths": np.array([len(rows[number].input_ids) for number in sorted(rows)], np.int64),
        "input_ids": _joined([rows[number].input_ids for number in sorted(rows)]),
        "labels": _joined([rows[number].labels for number in sorted(rows)]),
    }


def unflat_rows(arrays: Mapping[str, NDArray[Any]]) -> dict[int, Row]:
    """What flat_rows made, by row number."""
    borders = np.cumsum(arrays["lengths"])[:-1]
    ids, labels = np.split(arrays["input_ids"], borders), np.split(arrays["labels"], borders)
    numbers = arrays["numbers"].tolist()
    return {number: Row(*row) for number, row in zip(numbers, zip(ids, labels, strict=True), strict=True)}


def _joined(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
