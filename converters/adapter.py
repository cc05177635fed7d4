"""PEFT adapter folders, written and read without torch: the one exchange format of both backends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import new_folder, write_json
from twintune.backends.job import Lora, PrefixTuning
from twintune.converters.adapter_settings import (
    CONFIG,
    effective_alpha,
    read_adapter_config,
    resolve_targets,
    saved_modules_of,
)
from twintune.converters.names import LINEAR_MODULES, linear_shapes
from twintune.converters.prefix_adapter import (
    is_prefix,
    make_initial_prefix,
    prefix_settings,
    read_prefix,
    read_prefix_config,
    read_prefix_to_train,
    write_prefix,
)
from twintune.converters.saved_modules import PEFT_PREFIX, saved_shapes, saved_weights, trained_name
from twintune.errors import UserError, raise_collected

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
A, B = "lora_A.weight", "lora_B.weight"


def make_initial_adapter(config: Mapping[str, Any], lora: Lora, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the matrices that both backends start from: A Kaiming-uniform with a = sqrt(5), B zero.

    Args:
        config: the model's config.json.
        lora: rank and target modules.
        seed: of NumPy's PCG64, whose stream is the same on every machine.

    Returns:
        float32 arrays by PEFT name, A as [r, in], B as [out, r]; PEFT's own initialization
        (peft.tuners.lora.layer.LoraLayer.reset_lora_parameters) has the same distribution.
    """
    draw = np.random.default_rng(seed)
    tensors = {}
    for module, (out_features, in_features) in linear_shapes(config, lora.target_modules).items():
        bound = 1 / math.sqrt(in_features)
        a = draw.uniform(-bound, bound, size=(lora.r, in_features))
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = np.zeros((out_features, lora.r), np.float32)
    return tensors


def write_initial_adapter(
    folder: Path, model: Path, config: Mapping[str, Any], adapter: Lora | PrefixTuning, seed: int
) -> None:
    """Write the adapter that both backends start from: numbers by seed, and the base's own weights of whole modules.

    Args:
        folder: a new one.
        model: Hugging Face folder.
        config: its checked config.json.
        adapter: its settings.
        seed: see make_initial_adapter and make_initial_prefix.

    Raises:
        UserError: what write_adapter and saved_weights raise.
    """
    if isinstance(adapter, PrefixTuning):
        tensors = make_initial_prefix(adapter, seed)
    else:
        whole = dict(saved_weights(model, config, adapter.modules_to_save))
        tensors = make_initial_adapter(config, adapter, seed) | whole
    write_adapter(folder, tensors, adapter, str(model))


def write_adapter(
    folder: Path, tensors: Mapping[str, NDArray[np.float32]], adapter: Lora | PrefixTuning, base_model: str
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, loadable by PeftModel.from_pretrained."""
    from safetensors.numpy import save_file

    with new_folder(folder) as aside:
        if isinstance(adapter, PrefixTuning):
            write_prefix(aside, adapter, tensors, WEIGHTS)
            write_json(aside / CONFIG, prefix_settings(adapter, base_model))
        else:
            save_file(dict(sorted(tensors.items())), aside / WEIGHTS, metadata={"format": "pt"})
            write_json(aside / CONFIG, _peft_config(adapter, base_model))


def check_adapter_settings(folder: Path) -> None:
    """Refuse an adapter folder that no backend answers with, by its adapter_config.json alone.

    Raises:
        UserError: what read_adapter_config and read_prefix_config raise.
    """
    if is_prefix(folder):
        read_prefix_config(folder)
    else:
        read_adapter_config(folder)


def read_any_adapter(
    folder: Path, *, to_train: bool = False
) -> tuple[Lora | PrefixTuning, dict[str, NDArray[np.float32]]]:
    """As read_adapter, for either kind; `to_train` gives the parameters that training goes on from.

    Raises:
        UserError: what read_adapter and read_prefix raise.
    """
    if not is_prefix(folder):
        return read_adapter(folder)
    return read_prefix_to_train(folder, WEIGHTS) if to_train else read_prefix(folder, WEIGHTS)


def _peft_config(lora: Lora, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": list(lora.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "modules_to_save": list(lora.modules_to_save) or None,
    }


def read_adapter(folder: Path) -> tuple[Lora, dict[str, NDArray[np.float32]]]:
    """Read a PEFT LoRA folder: its settings and float32 arrays by PEFT name.

    Scaling by lora_alpha / sqrt(r) (use_rslora) comes as the lora_alpha that plain scaling needs; where
    target_modules is no list of layers' names, the matrices tell the layers.

    Raises:
        UserError: for a missing or broken file, and for every setting or tensor that would be lost.
    """
    config = read_adapter_config(folder)
    saved = saved_modules_of(config)
    tensors = _read_matrices(folder / WEIGHTS, saved)
    targets = config["target_modules"]
    if isinstance(targets, str) or not set(targets) <= set(LINEAR_MODULES):
        present = {name.split(".")[-3] for name in tensors if ".lora_" in name}
        targets = [module for module in LINEAR_MODULES if module in present]
    return Lora(config["r"], effective_alpha(config), config["lora_dropout"], tuple(targets), saved), tensors


def _read_matrices(file: Path, modules_to_save: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then reads
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        given = load_file(file)
    except FileNotFoundError:
        pickled = file.with_name(PICKLED).exists()
        got = f"the pickled {PICKLED}, not read: save with safe_serialization=True" if pickled else "nothing"
        raise UserError(f"{file}: the adapter must have this file, got {got}") from None
    except SafetensorError as error:
        raise UserError(f"{file}: the adapter must be a whole safetensors file, got: {error}") from None
    tensors: dict[str, NDArray[np.float32]] = {}
    problems = []
    for name, tensor in given.items():
        standard = trained_name(name, modules_to_save)
        if standard is None:
            whole = f", or of modules_to_save {', '.join(modules_to_save)}" if modules_to_save else ""
            problems.append(f"{file}: {name} must be LoRA of {', '.join(LINEAR_MODULES)}{whole}, got another tensor")
        elif standard in tensors:
            problems.append(f"{file}: {standard} must be there once, got it as {name} too; save one adapter alone")
        elif not np.isfinite(tensor).all():
            problems.append(f"{file}: {name} must be finite, got NaN or infinity")
        else:
            tensors[standard] = tensor.astype(np.float32)
    raise_collected(problems)
    return tensors


def read_adapter_for(folder: Path, config: Mapping[str, Any]) -> tuple[Lora, dict[str, NDArray[np.float32]]]:
    """As read_adapter, and held against the model: every matrix that the settings name, and no other.

    Args:
        folder: PEFT folder.
        config: the model's config.json.

    Raises:
        UserError: what read_adapter raises, and for every matrix that is missing, unknown or misshapen.
    """
    settings = read_adapter_config(folder)
    lora, tensors = read_adapter(folder)
    named = resolve_targets(settings, config)
    whole = linear_shapes(config, {module.rpartition(".")[2] for module in named})
    raise_collected(
        [
            f"{folder / CONFIG}: target_modules must be linear layers of the decoder, got {module} among them"
            for module in sorted(named - linear_shapes(config, LINEAR_MODULES).keys())
        ]
        + [
            f"{folder / CONFIG}: target_modules must name a layer's kind in every layer, got none for {module}"
            for module in whole
            if module not in named
        ]
        + matrix_problems(folder / WEIGHTS, tensors, lora.r, whole, saved_shapes(config, lora.modules_to_save))
    )
    targets = tuple(module for module in LINEAR_MODULES if any(name.endswith(f".{module}") for name in whole))
    return replace(lora, target_modules=targets), tensors


def matrix_problems(
    source: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    r: int,
    shapes: Mapping[str, tuple[int, int]],
    whole_shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """What is wrong with an adapter's tensors: one sentence for each that is missing, unknown or misshapen.

    Args:
        source: named in the sentences.
        tensors: arrays by PEFT name.
        r: the rank.
        shapes: [out, in] of each layer that must have matrices, by module name.
        whole_shapes: of the weights of modules_to_save, by Hugging Face name.
    """
    wanted: dict[str, tuple[int, ...]] = {PEFT_PREFIX + name: shape for name, shape in whole_shapes.items()}
    for module, (out_features, in_features) in shapes.items():
        wanted[f"{PEFT_PREFIX}{module}.lora_A.weight"] = (r, in_features)
        wanted[f"{PEFT_PREFIX}{module}.lora_B.weight"] = (out_features, r)
    problems = [f"{source}: {name} must be there, got no such matrix" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            problems.append(f"{source}: {name} must not be there: the model has no such layer, or no target names it")
        elif tensor.shape != wanted[name]:
            problems.append(
                f"{source}: {name} must be {list(wanted[name])}, got {list(tensor.shape)}"
                f"{_likely_cause(name, tensors, wanted)}"
            )
        elif name.endswith(A) and not tensor.any() and tensors.get(name.replace(A, B), tensor).any():
            problems.append(f"{source}: {name} must not be zero where B is not, got zeros; A and B look swapped")
    return problems


def _likely_cause(name: str, tensors: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    other = name.replace(A, B) if name.endswith(A) else name.replace(B, A)
    if other in tensors and (tensors[name].shape, tensors[other].shape) == (wanted[other], wanted[name]):
        return "; A and B are swapped"
    if tensors[name].shape == wanted[name][::-1]:
        return "; it is transposed"
    return ""
