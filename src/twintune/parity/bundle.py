"""A bundle: what one run was and computed, in a folder of JSON and safetensors that any machine can read.

    bundle.json           what it is: format, backend, versions, recipe, hashes; sealed with its own sha256
    rows.safetensors      a digest of every row, the order of training, ids and labels of some rows or all
    pieces.json           the text of each token id in those rows
    forward.safetensors   logits and hidden states of some conversations, without and with an adapter
    gradients.safetensors losses and gradients of the first optimizer step's rows
    one_step.safetensors  LoRA matrices at the start and after the first step that moves them
    run.safetensors       logits with the final adapter, merged and not
    cross-*.safetensors   logits with the other side's final adapter
    texts.json            greedy texts, and the distribution that a first token is drawn from
    log.jsonl, adapter/   the run's steps and its final adapter

Nothing in it names a machine, a user or a folder. It does hold texts of the data: the rows that were chosen.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import (
    changed_files,
    new_file,
    new_folder,
    read_sealed,
    sha256_file,
    write_json,
    write_sealed,
)
from twintune.backends.job import Step
from twintune.errors import UserError, raise_collected
from twintune.run_log import read_log

FORMAT = 1  # a bundle of an older format stays readable; of a newer one it is said which twintune reads it
FACTS = "bundle.json"
LOG = "log.jsonl"
ADAPTER = "adapter"
TEXTS = "texts.json"
PIECES = "pieces.json"
RATES = "learning_rates"  # in one_step.safetensors, float64 [max_steps]
BASE, PROBE = "base", "probe"  # adapters of forward.safetensors: none, and one whose B is not zero
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A recorded run, its files read where they are asked for.

    Attributes:
        folder: where it lies.
        facts: bundle.json without its seal.
    """

    folder: Path
    facts: Mapping[str, Any]
    _read: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The folder's last name, by which reports call this side."""
        return self.folder.resolve().name

    def has(self, name: str) -> bool:
        """Whether a file of that name is part of the bundle."""
        return name in self.facts["sha256"]

    def arrays(self, group: str) -> dict[str, NDArray[Any]]:
        """The arrays of GROUP.safetensors by name, read once; empty if that was not recorded."""
        from safetensors.numpy import load_file

        name = f"{group}.safetensors"
        if group not in self._read:
            self._read[group] = load_file(self.folder / name) if self.has(name) else {}
        return self._read[group]

    def json(self, name: str) -> Any:
        """The value of one of its JSON files."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The log of the run; empty if it failed."""
        return tuple(read_log(self.folder / LOG)) if self.has(LOG) else ()


class BundleWriter:
    """A bundle on its way: files first, bundle.json over all of them last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_arrays(self, group: str, arrays: Arrays) -> None:
        """Write GROUP.safetensors."""
        from safetensors.numpy import save_file

        contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
        with new_file(self.folder / f"{group}.safetensors") as aside:
            save_file(contiguous, aside)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        write_json(self.folder / name, value)

    def seal(self, facts: Mapping[str, Any]) -> None:
        """Write bundle.json over every file of the folder."""
        write_sealed(self.folder / FACTS, {**facts, "format": FORMAT, "sha256": _hashes(self.folder)})


@contextmanager
def new_bundle(folder: Path) -> Iterator[BundleWriter]:
    """Give a writer; the folder appears only if the block succeeds."""
    with new_folder(folder) as aside:
        yield BundleWriter(aside)


def add_arrays(bundle: Bundle, group: str, arrays: Arrays) -> Bundle:
    """Write GROUP.safetensors into a bundle that is there, and seal it anew."""
    writer = BundleWriter(bundle.folder)
    writer.write_arrays(group, arrays)
    writer.seal({name: value for name, value in bundle.facts.items() if name not in ("format", "sha256")})
    return open_bundle(bundle.folder)


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle, every file compared with its sha256.

    Raises:
        UserError: if it is no bundle, of a newer format, or any byte of it has changed.
    """
    path = folder / FACTS
    if not path.is_file():
        raise UserError(f"{folder}: must be a bundle made by twintune parity record, got no {FACTS} in it")
    facts = read_sealed(path, "record it again")
    if not isinstance(facts.get("format"), int) or not 1 <= facts["format"] <= FORMAT:
        raise UserError(
            f"{path}: format must be at most {FORMAT}, got {facts.get('format')!r}; "
            f"compare with the twintune that recorded it, {facts.get('versions', {}).get('twintune')}, or a newer one"
        )
    raise_collected(changed_files(folder, facts["sha256"], "record it again"))
    return Bundle(folder, facts)


def cross_group(peer: Bundle) -> str:
    """The name of the arrays that belong to a peer's final adapter: it has its sha256 in it."""
    return f"cross-{peer.facts['sha256'][f'{ADAPTER}/adapter_model.safetensors'][:16]}"


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != FACTS)
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}
