"""What lies in the files that MindFormers reads and writes: `.ckpt` or safetensors, by its own names."""

from collections.abc import Collection
from pathlib import Path

from twintune.converters.mindspore_checkpoint import read_checkpoint
from twintune.converters.names import LORA
from twintune.converters.sharded import read_sharded
from twintune.converters.stored_tensors import StoredTensor, TensorSpec
from twintune.errors import UserError

CHECKPOINT_SUFFIX = ".ckpt"
SAFETENSORS_SUFFIX = ".safetensors"
LORA_MATRICES = "LoRA matrices"
OPTIMIZER_STATE = "tensors of optimizer state"
TRAINING_STATE = "numbers of training state"


def read_mindformers(source: Path) -> dict[str, StoredTensor]:
    """Where each parameter lies, by MindFormers name, without reading one.

    Args:
        source: a `.ckpt` file, a safetensors file, or a folder of safetensors files.

    Raises:
        UserError: if it is none of these, or broken.
    """
    if source.is_dir():
        files = sorted(source.glob(f"*{SAFETENSORS_SUFFIX}"))
        if files:
            return read_sharded(files)
        raise UserError(
            f"{source}: a folder of MindFormers weights must hold *.safetensors, got none; "
            "for a .ckpt name the file itself"
        )
    if source.suffix == CHECKPOINT_SUFFIX:
        return read_checkpoint(source)
    if source.suffix == SAFETENSORS_SUFFIX:
        return read_sharded([source])
    raise UserError(
        f"{source}: MindFormers weights must be a .ckpt file, a .safetensors file or a folder of those, got neither"
    )


def is_lora(name: str) -> bool:
    """Whether this MindFormers name is that of a LoRA matrix."""
    return name.rpartition(".")[2] in LORA.values()


def kind_beside(name: str, spec: TensorSpec, parameters: Collection[str]) -> str | None:
    """What an entry is that is no base weight; None if nothing that MindFormers' training leaves.

    Args:
        name: in the file.
        spec: dtype and shape of the entry.
        parameters: MindFormers names of the model's base weights.
    """
    if is_lora(name) and name.startswith("model."):
        return LORA_MATRICES
    # Optimizers clone the parameters under a prefix: adam_m.NAME, adam_v.NAME, moments.NAME, accum.NAME, ...
    cloned = name.partition(".")[2]
    if cloned in parameters or is_lora(cloned):
        return OPTIMIZER_STATE
    if "." not in name and spec.count == 1:  # global_step, epoch_num, loss_scale, scale_sense, learning_rate, ...
        return TRAINING_STATE
    return None
