"""Modules that are trained whole beside the LoRA matrices: PEFT's modules_to_save, the embedding and the head."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Lora
from twintune.converters.names import adapter_names, base_names, base_shapes, standard_name
from twintune.converters.stored_tensors import WEIGHT_DTYPES
from twintune.converters.weights import find_weights
from twintune.errors import UserError

MODULES = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
PEFT_PREFIX = "base_model.model."
# PEFT's file names leave the wrapper out; a state dict that was saved as it was has it.
WRAPPERS = (".modules_to_save.default.", ".modules_to_save.")


def saved_shapes(config: Mapping[str, Any], modules_to_save: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of some whole modules, by Hugging Face name, in the order of base_names.

    Args:
        config: the model's checked config.json.
        modules_to_save: keys of MODULES.

    Raises:
        UserError: for a model whose head is its embedding.
    """
    require_own_head(modules_to_save, config.get("tie_word_embeddings", False))
    modules = {MODULES[module] for module in modules_to_save}
    return {name: shape for name, shape in base_shapes(config).items() if name.rpartition(".")[0] in modules}


def require_own_head(modules_to_save: Sequence[str], tied: bool) -> None:
    """Refuse whole modules of a model whose head is its embedding.

    PEFT trains a copy beside the tied weight, MindFormers the weight that both share: two different jobs.

    Raises:
        UserError: if there are such modules and embedding and head are tied.
    """
    if modules_to_save and tied:
        raise UserError(
            "lora.modules_to_save must be empty for a model whose head is its embedding (tie_word_embeddings: true), "
            f"got {', '.join(modules_to_save)}; leave it out, or save the model with a head of its own and "
            "tie_word_embeddings: false"
        )


def saved_weights(
    model: Path, config: Mapping[str, Any], modules_to_save: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The base's own weights of some whole modules as float32 by PEFT name, one at a time: where training begins.

    Raises:
        UserError: as saved_shapes and find_weights.
    """
    names = saved_shapes(config, modules_to_save)
    if names:
        tensors = find_weights(model, config).tensors
        for name in names:
            yield PEFT_PREFIX + name, tensors[name].read_as(WEIGHT_DTYPES["float32"])


def trained_names(config: Mapping[str, Any], lora: Lora) -> dict[str, str]:
    """Every trained parameter, PEFT name to MindFormers name: LoRA matrices, then whole modules.

    Raises:
        UserError: as saved_shapes.
    """
    whole = {PEFT_PREFIX + name: base_names(config)[name] for name in saved_shapes(config, lora.modules_to_save)}
    return adapter_names(config, lora.target_modules) | whole


def saved_name(name: str) -> str | None:
    """The name that PEFT's own file has for a weight of a whole module, however it is spelled; None for any other."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, ".")
    module, _, leaf = name.removeprefix(PEFT_PREFIX).rpartition(".")
    if module in MODULES.values() and leaf in ("weight", "bias"):
        return f"{PEFT_PREFIX}{module}.{leaf}"
    return None


def module_of(name: str) -> str:
    """The key of MODULES that a weight of a whole module belongs to, by its PEFT name."""
    return name.split(".")[-2]


def trained_name(name: str, modules_to_save: Sequence[str]) -> str | None:
    """The name that PEFT's own file has for a LoRA matrix or a weight of these modules; None for any other tensor."""
    whole = saved_name(name)
    if whole is not None and module_of(whole) in modules_to_save:
        return whole
    return standard_name(name)
