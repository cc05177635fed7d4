"""What an adapter_config.json says, of PEFT or of a trainer that uses it: read whole, or refused by name."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twintune.converters.names import LINEAR_MODULES, linear_shapes
from twintune.converters.saved_modules import MODULES
from twintune.errors import UserError, raise_collected

CONFIG = "adapter_config.json"
SAVED = "modules_to_save"
NUMBERS: dict[str, tuple[Any, str]] = {
    "r": (int, "a whole number"),
    "lora_alpha": (int | float, "a number"),
    "lora_dropout": (int | float, "a number"),
}
# The values with which an adapter is W + scaling * B A on linear layers, the first being what to use.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    "use_rslora": (False, True, None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "layers_to_transform": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # pissa and its like change the base too
}
# Keys that say where an adapter comes from or which modules it has: the matrices tell the same.
TELLING = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
}
NOTHING: tuple[Any, ...] = (None, False, {}, [], "")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what LoRA on linear layers, one rank for all, is not.

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
    if config.get("peft_type") == "PREFIX_TUNING":
        raise UserError(
            f"{path}: peft_type must be 'LORA' here, got 'PREFIX_TUNING'; a prefix cannot be merged, exported or "
            "compared: use its folder as it is, on either backend or with PeftModel.from_pretrained"
        )
    raise_collected(f"{path}: {problem}" for problem in _problems(config))
    return config


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    for key, allowed in PLAIN.items():
        if config.get(key) not in allowed:
            yield f"{key} must be {allowed[0]!r}, got {config.get(key)!r}; only plain LoRA is carried across"
    for key in sorted(config.keys() - PLAIN.keys() - NUMBERS.keys() - TELLING - {SAVED}):
        if config[key] not in NOTHING:
            yield f"{key} must not be set, got {config[key]!r}; only plain LoRA is carried across"
    for key, (kinds, rule) in NUMBERS.items():
        if not isinstance(config.get(key), kinds) or isinstance(config.get(key), bool):
            yield f"{key} must be {rule}, got {config.get(key)!r}"
    if isinstance(config.get("r"), int) and config["r"] < 1:
        yield f"r must be at least 1, got {config['r']}"
    saved = config.get(SAVED) or []
    if not isinstance(saved, list) or not set(map(str, saved)) <= MODULES.keys():
        yield f"{SAVED} must be a list of {', '.join(MODULES)}, got {saved!r}; no other module is carried across whole"
    targets = config.get("target_modules")
    if not isinstance(targets, str) and not _is_list_of_names(targets):
        yield f"target_modules must be a list of names or a regular expression, got {targets!r}"


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def saved_modules_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that an adapter has whole, in the order of MODULES."""
    return tuple(module for module in MODULES if module in (config.get(SAVED) or ()))


def effective_alpha(config: Mapping[str, Any]) -> float:
    """The lora_alpha of plain scaling lora_alpha / r that gives this adapter's own.

    With use_rslora the scaling is lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732).
    """
    alpha: float = config["lora_alpha"]
    return alpha / math.sqrt(config["r"]) * config["r"] if config.get("use_rslora") else alpha


def resolve_targets(settings: Mapping[str, Any], config: Mapping[str, Any]) -> set[str]:
    """The modules of a model that an adapter's settings name, as PEFT resolves them.

    A list names whole modules or their last parts, a text is a regular expression over whole names, or
    `all-linear`: peft.tuners.tuners_utils.check_target_module_exists.

    Args:
        settings: an adapter_config.json.
        config: the model's config.json.

    Raises:
        UserError: for what is no regular expression.
    """
    every = [*linear_shapes(config, LINEAR_MODULES), "model.embed_tokens", "lm_head"]
    wanted = settings["target_modules"]
    if wanted == "all-linear":  # PEFT leaves the output layer out
        chosen = set(every[:-2])
    else:
        chosen = {module for module in every if _names(module, wanted, "target_modules")}
    return {module for module in chosen if not _names(module, settings.get("exclude_modules") or [], "exclude_modules")}


def _names(module: str, wanted: str | Iterable[str], key: str) -> bool:
    if not isinstance(wanted, str):
        return any(module == name or module.endswith(f".{name}") for name in wanted)
    try:
        return re.fullmatch(wanted, module) is not None
    except re.error as error:
        raise UserError(f"{CONFIG}: {key} must be a regular expression, got {wanted!r}: {error}") from None
