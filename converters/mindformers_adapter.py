"""LoRA matrices in files under MindFormers' names, alone or among all else that its training saves."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from twintune.converters.mindformers_files import is_lora, read_mindformers
from twintune.converters.mindspore_checkpoint import write_checkpoint
from twintune.converters.names import LORA, peft_name
from twintune.converters.stored_tensors import StoredTensor
from twintune.errors import UserError

OPTIMIZER = ("adam_m.", "adam_v.")
NOTHING: Mapping[str, str] = MappingProxyType({})
FILE_KINDS = (".ckpt", ".safetensors")


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds.

    Attributes:
        matrices: what was trained, float32 by PEFT name, A [r, in] and B [out, r].
        unknown: LoRA parameters of modules that no PEFT name stands for.
        left_out: how many other entries, by kind.
        step: the optimizer step at which a training state was saved, where the file says it.
    """

    matrices: dict[str, NDArray[np.float32]]
    unknown: tuple[str, ...]
    left_out: Counter[str]
    step: int | None


def read_matrices(file: Path, whole: Mapping[str, str] = NOTHING) -> Found:
    """Read the LoRA matrices of a file and count the rest; base weights and optimizer state stay on disk.

    Args:
        file: a `.ckpt` or `.safetensors`.
        whole: parameters of modules that were trained whole, read too, MindFormers name to PEFT name.

    Raises:
        UserError: if the file is no whole checkpoint, or has no LoRA matrix.
    """
    stored = read_mindformers(file)
    names = {name: whole.get(name) or peft_name(name) for name in stored}
    matrices = {standard: stored[name].read().astype(np.float32) for name, standard in names.items() if standard}
    others = [name for name, standard in names.items() if standard is None]
    unknown = tuple(name for name in others if is_lora(name) and not name.startswith(OPTIMIZER))
    if not matrices and not unknown:
        raise UserError(
            f"{file}: must hold LoRA matrices (*.{', *.'.join(LORA.values())}), got {len(others)} other entries; "
            "for base weights use: twintune export weights"
        )
    left_out = Counter(_kind(name) for name in others if name not in unknown)
    return Found(matrices, unknown, left_out, _step(stored))


def told_rank(file: Path) -> int:
    """The rank of a file's matrices, A being [r, in].

    Raises:
        UserError: what read_matrices raises, and if they do not have one rank.
    """
    ranks = {tensor.shape[0] for name, tensor in read_matrices(file).matrices.items() if "lora_A" in name}
    if len(ranks) != 1:
        raise UserError(f"{file}: all A must have one rank, their first size, got {sorted(ranks)}; give --pet-config")
    return ranks.pop()


def _kind(name: str) -> str:
    if name.startswith(OPTIMIZER):
        return "optimizer state"
    return "base weights" if name.startswith(("model.", "lm_head.")) else "counters of the training"


def _step(stored: Mapping[str, StoredTensor]) -> int | None:
    # Not the file's name: after a resume MindFormers counts it from the wrong step.
    return int(stored["global_step"].read().reshape(-1)[0]) if "global_step" in stored else None


def write_matrices(file: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write matrices by MindFormers name into a `.ckpt` or `.safetensors`, by the file's name."""
    from safetensors.numpy import save_file

    if file.suffix == ".ckpt":
        write_checkpoint(file, tensors.items())
    else:
        save_file(dict(tensors), file)


def find_checkpoint(source: Path) -> Path:
    """The one checkpoint that `source` is or has in it, at any depth.

    Raises:
        UserError: if there is none, or more than one.
    """
    if source.is_file():
        return source
    found = sorted(path for kind in FILE_KINDS for path in source.rglob(f"*{kind}"))
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(source)) for path in found[-3:])
        raise UserError(
            f"{source}: must be a PEFT folder, a checkpoint, or a folder with one checkpoint in it, got "
            f"{len(found)} of them{f' ({names}, ...)' if found else ''}; name the file"
        )
    return found[0]
