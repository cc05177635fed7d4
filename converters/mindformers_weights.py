"""Base weights in MindFormers' files, found among all else that its training saves."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twintune.converters.mindformers_files import LORA_MATRICES, kind_beside, read_mindformers
from twintune.converters.names import base_names
from twintune.converters.stored_tensors import StoredTensor
from twintune.converters.weights import EMBEDDING, HEAD, TIED_HEAD, BaseWeights, account, check_tied
from twintune.errors import UserError


def find_mindformers_weights(source: Path, config: Mapping[str, Any], *, leave_out_lora: bool = False) -> BaseWeights:
    """Where each base weight lies in a checkpoint; none is read.

    Args:
        source: a `.ckpt` file, a safetensors file, or a folder of safetensors files.
        config: the model's checked config.json, which says which weights there must be, and of which shapes.
        leave_out_lora: take the base weights of a checkpoint that has LoRA matrices too.

    Raises:
        UserError: for every weight that is missing, unexpected or of another shape or dtype, all at once; for
            LoRA matrices that are not to be left out; for a head that differs from the embedding it is tied to.
    """
    stored = read_mindformers(source)
    names = base_names(config)
    kinds = _kinds(stored, set(names.values()))
    if config["tie_word_embeddings"] and HEAD in stored:
        kinds[HEAD] = TIED_HEAD
    matrices = sum(kind == LORA_MATRICES for kind in kinds.values())
    if matrices and not leave_out_lora:
        raise UserError(
            f"{source}: must hold base weights alone, got {matrices} LoRA matrices too, which a folder of base weights "
            "cannot keep; export them with `twintune export adapter`, and give --leave-out-lora to go on without them"
        )
    account(source, config, stored, names, kinds)
    check_tied(source, stored, names[EMBEDDING], kinds)
    return BaseWeights({theirs: stored[name] for theirs, name in names.items()}, Counter(kinds.values()))


def _kinds(stored: Mapping[str, StoredTensor], parameters: set[str]) -> dict[str, str]:
    """The kind of each entry that is known and no base weight."""
    kinds = {}
    for name, tensor in stored.items():
        kind = None if name in parameters else kind_beside(name, tensor.spec, parameters)
        if kind:
            kinds[name] = kind
    return kinds
