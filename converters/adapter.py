"""PEFT adapter folders, written and read without torch: the one exchange format of both backends."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import new_folder, write_json
from twintune.backends import Lora
from twintune.converters.names import linear_shapes
from twintune.errors import UserError, raise_collected

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NUMBERS: dict[str, tuple[Any, str]] = {
    "r": (int, "a whole number"),
    "lora_alpha": (int | float, "a number"),
    "lora_dropout": (int | float, "a number"),
}
PEFT_PREFIX = "base_model.model."


def make_initial_adapter(config: Mapping[str, Any], lora: Lora, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the adapter that both backends start from: A Kaiming-uniform with a = sqrt(5), B zero.

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


def write_adapter(folder: Path, tensors: Mapping[str, NDArray[np.float32]], lora: Lora, base_model: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, loadable by PeftModel.from_pretrained."""
    from safetensors.numpy import save_file

    with new_folder(folder) as aside:
        save_file(dict(sorted(tensors.items())), aside / WEIGHTS, metadata={"format": "pt"})
        write_json(aside / CONFIG, _peft_config(lora, base_model))


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
    }


def read_adapter(folder: Path) -> tuple[Lora, dict[str, NDArray[np.float32]]]:
    """Read a PEFT LoRA folder: its settings and float32 arrays by PEFT name.

    Raises:
        UserError: for a missing or broken file, and for every setting that would be lost.
    """
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then reads
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config = read_adapter_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{folder / WEIGHTS}: the adapter must have this file, got nothing there") from None
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: the adapter must be a whole safetensors file, got: {error}") from None
    raise_collected(
        f"{folder / WEIGHTS}: {name} must be finite, got NaN or infinity"
        for name, tensor in tensors.items()
        if not np.isfinite(tensor).all()
    )
    lora = Lora(config["r"], config["lora_alpha"], config["lora_dropout"], tuple(config["target_modules"]))
    return lora, {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what plain LoRA on linear layers is not.

    Raises:
        UserError: for every setting that this project does not carry to the other backend.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: --adapter must be a PEFT adapter folder, got no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the adapter's settings must be JSON, got: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: the adapter's settings must be a JSON object, got {type(config).__name__}")
    expected: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_rslora": (False, None),
        "use_dora": (False, None),
        "modules_to_save": (None, []),
        "fan_in_fan_out": (False, None),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "init_lora_weights": (True, False, None, "gaussian"),  # pissa and its like change the base weights too
    }
    problems = [
        f"{path}: {key} must be {allowed[0]!r}, got {config.get(key)!r}; only plain LoRA is carried across"
        for key, allowed in expected.items()
        if config.get(key) not in allowed
    ]
    problems += [
        f"{path}: {key} must be {rule}, got {config.get(key)!r}"
        for key, (kinds, rule) in NUMBERS.items()
        if not isinstance(config.get(key), kinds)
    ]
    if not isinstance(config.get("target_modules"), list):
        problems.append(f"{path}: target_modules must be a list of names, got {config.get('target_modules')!r}")
    raise_collected(problems)
    return config
