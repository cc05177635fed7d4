"""Checkpoints of a run: a PEFT adapter folder with the optimizer's state beside it, the same from either backend."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import changed_files, new_folder, read_sealed, sha256_file, write_sealed
from twintune.backends.job import Lora, PrefixTuning
from twintune.converters.adapter import read_any_adapter, write_adapter
from twintune.errors import UserError, raise_collected

STATE = "trainer_state.json"
TENSORS = "optimizer.safetensors"
REMEDY = "delete this checkpoint and resume from an older one"


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to go on as if it had never stopped, besides its recipe and its adapter.

    Attributes:
        step: optimizer steps done. Learning rate, rows and dropout of the next follow from it.
        backend: which one wrote it.
        optimizer: by torch's name of the moment and PEFT's of the parameter, such as `exp_avg.NAME`: float32 arrays,
            or an 8-bit optimizer's codes with the largest number of each block.
    """

    step: int
    backend: str
    optimizer: Mapping[str, NDArray[Any]]


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    adapter: Lora | PrefixTuning,
    base_model: str,
    state: TrainingState,
    *,
    only_model: bool,
) -> None:
    """Write a checkpoint whole or not at all; with `only_model` it is an adapter that no run can go on from."""
    from safetensors.numpy import save_file

    with new_folder(folder, mark="checkpoint") as aside:
        write_adapter(aside, tensors, adapter, base_model)
        if not only_model:
            save_file(dict(state.optimizer), aside / TENSORS)
        files = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
        write_sealed(aside / STATE, {"step": state.step, "backend": state.backend, "sha256": files})


def read_checkpoint(folder: Path) -> tuple[dict[str, NDArray[np.float32]], TrainingState]:
    """The adapter by PEFT name, and the state beside it, every file compared with its sha256.

    Raises:
        UserError: for a checkpoint that is broken, or was saved with train.save_only_model.
    """
    facts = read_facts(folder)
    raise_collected(changed_files(folder, facts["sha256"], REMEDY))
    if TENSORS not in facts["sha256"]:
        raise UserError(
            f"{folder}: a checkpoint to resume from must hold {TENSORS}, got the adapter alone "
            "(train.save_only_model: true); train again without it"
        )
    _, adapter = read_any_adapter(folder, to_train=True)
    return adapter, TrainingState(facts["step"], facts["backend"], _read_tensors(folder / TENSORS))


def read_facts(folder: Path) -> dict[str, Any]:
    """What stands in a checkpoint's trainer_state.json: step, backend and the sha256 of its files.

    Raises:
        UserError: if it is missing or not as it was written.
    """
    return read_sealed(folder / STATE, REMEDY)


def _read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[Any]] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: must be a whole safetensors file, got: {error}; {REMEDY}") from None
    return tensors
