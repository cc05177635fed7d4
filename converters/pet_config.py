"""The settings of a LoRA adapter in MindFormers' words, which its weight files do not hold: `pet_config`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twintune.artifacts import parse_yaml
from twintune.backends.job import Lora
from twintune.converters.families import EVERY_MODULE
from twintune.converters.names import LINEAR_MODULES
from twintune.errors import UserError, raise_collected

LEAVES = {theirs.split(".")[1]: ours.split(".")[1] for theirs, ours in EVERY_MODULE.items()}
# Patterns of parameters that MindFormers trains beside the LoRA matrices, by PEFT's module.
NOT_FROZEN = {"embed_tokens": "*tok_embeddings.*", "lm_head": "*lm_head.*"}
NUMBERS: dict[str, tuple[Any, str]] = {
    "lora_rank": (int, "a whole number"),
    "lora_alpha": (int | float, "a number"),
    "lora_dropout": (int | float, "a number"),
}


@dataclass(frozen=True)
class PetConfig:
    """What a file says of an adapter.

    Attributes:
        lora: rank, strength and layers.
        base_model: the model that it belongs to, where the file names one.
        sha256: of the file of matrices, where it names one.
    """

    lora: Lora
    base_model: str | None
    sha256: str | None


def to_pet_config(lora: Lora) -> dict[str, Any]:
    """The section for a MindFormers YAML; its pattern is matched with the beginning of a layer's own name."""
    return {
        "pet_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": "|".join(f"{LEAVES[module]}$" for module in lora.target_modules),
        **({"freeze_exclude": [NOT_FROZEN[module] for module in lora.modules_to_save]} if lora.modules_to_save else {}),
    }


def read_pet_config(file: Path) -> PetConfig:
    """Read `pet_config` from a MindFormers YAML, or from the JSON that an export wrote beside the matrices.

    Raises:
        UserError: if it cannot be read, has no such section, or the section does not say what it must.
    """
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: the settings must be a YAML file, got: {' '.join(str(error).split())}") from None
    section = _section(tree)
    if section is None:
        raise UserError(f"{file}: pet_config must be there, at the top or under model.model_config, got none")
    raise_collected(f"{file}: pet_config.{problem}" for problem in _problems(section))
    pattern = section["target_modules"]
    targets = tuple(module for module in LINEAR_MODULES if re.match(pattern, LEAVES[module]))
    saved = tuple(module for module, names in NOT_FROZEN.items() if names in (section.get("freeze_exclude") or ()))
    lora = Lora(section["lora_rank"], section["lora_alpha"], section.get("lora_dropout", 0.0), targets, saved)
    return PetConfig(lora, tree.get("base_model_name_or_path"), tree.get("sha256"))


def _section(tree: Any) -> Mapping[str, Any] | None:
    for path in (("pet_config",), ("model", "model_config", "pet_config")):
        found = tree
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return None


def _problems(section: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{key} must be {rule}, got {section.get(key)!r}"
        for key, (kinds, rule) in NUMBERS.items()
        if not isinstance(section.get(key, 0 if key == "lora_dropout" else None), kinds)
    ]
    if section.get("pet_type", "lora") != "lora":
        problems.append(f"pet_type must be lora, got {section['pet_type']!r}")
    if section.get("exclude_layers"):
        problems.append(
            f"exclude_layers must be empty, got {section['exclude_layers']!r}; every layer has the same LoRA"
        )
    if not set(map(str, section.get("freeze_exclude") or ())) <= set(NOT_FROZEN.values()):
        problems.append(
            f"freeze_exclude must be of {', '.join(NOT_FROZEN.values())}, got {section['freeze_exclude']!r}; "
            "no other parameter is carried across beside LoRA"
        )
    if section.get("freeze_include"):
        problems.append(f"freeze_include must be empty, got {section['freeze_include']!r}; LoRA is trained in any case")
    return problems + _pattern_problems(section.get("target_modules"))


def _pattern_problems(pattern: Any) -> list[str]:
    try:
        found = isinstance(pattern, str) and any(re.match(pattern, leaf) for leaf in LEAVES.values())
    except re.error as error:
        return [f"target_modules must be a regular expression, got {pattern!r}: {error}"]
    return [] if found else [f"target_modules must match one of {', '.join(LEAVES.values())}, got {pattern!r}"]
