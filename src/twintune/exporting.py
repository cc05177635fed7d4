"""An adapter's export, with what its own files do not say found first: base model and settings."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from twintune.adapter_base import base_of, settings_of
from twintune.backends.job import Lora
from twintune.chat import adapter_recipe, model_section
from twintune.converters.adapter_export import AdapterExport, FileFormat, export_to_mindformers, export_to_peft
from twintune.converters.adapter_settings import read_adapter_config
from twintune.converters.mindformers_adapter import find_checkpoint
from twintune.converters.target_modules import layers_of
from twintune.errors import raise_collected
from twintune.models import read_model_config
from twintune.recipe_sections import ModelSection
from twintune.resizing import trained_model


def adapter_to_mindformers(
    adapter: Path, output_dir: Path, file_format: FileFormat, *, model: str | None = None
) -> tuple[AdapterExport, list[str]]:
    """Export a PEFT folder, and say which of its settings are spelled otherwise now.

    Raises:
        UserError: what base_of, resolve_model and export_to_mindformers raise.
    """
    base = base_of(adapter, model)
    settings = read_adapter_config(adapter)
    section = model_section(adapter_recipe(adapter), base.value)
    name = str(trained_model(section)) if section.pad_to_multiple_of else base.value
    done = export_to_mindformers(adapter, _config(name), output_dir, file_format, name)
    return done, [f"base model: {name} ({base.reason})", *_remarks(settings, done)]


def _remarks(settings: dict[str, Any], done: AdapterExport) -> list[str]:
    remarks = []
    if settings.get("use_rslora"):
        remarks.append(
            f"use_rslora: scaling lora_alpha / sqrt(r) = {settings['lora_alpha'] / math.sqrt(settings['r']):g} is kept "
            f"as lora_alpha {done.lora.lora_alpha:g} / r {done.lora.r}"
        )
    if settings["target_modules"] != list(done.lora.target_modules):
        named = json.dumps(settings["target_modules"], ensure_ascii=False)
        remarks.append(f"target_modules {named}: these are {', '.join(done.lora.target_modules)} of every layer")
    return remarks


def adapter_from_mindformers(
    source: Path,
    output_dir: Path,
    *,
    model: str | None = None,
    pet_config: Path | None = None,
    lora_alpha: float | None = None,
    target_modules: tuple[str, ...] | None = None,
) -> tuple[AdapterExport, str]:
    """Export what MindFormers' training left, and say where the settings come from.

    Raises:
        UserError: what find_checkpoint, settings_of, resolve_model and export_to_peft raise.
    """
    checkpoint = find_checkpoint(source)
    settings = settings_of(
        checkpoint, pet_config=pet_config, model=model, lora_alpha=lora_alpha, target_modules=target_modules
    )
    config = _config(settings.base_model)
    lora = _on_layers_of(config, settings.lora, target_modules or ())
    done = export_to_peft(checkpoint, config, output_dir, lora, settings.base_model)
    return done, settings.source


def _on_layers_of(config: dict[str, Any], lora: Lora, asked: tuple[str, ...]) -> Lora:
    """The settings for this model: a pattern of MindFormers may match layers that other families have."""
    known = layers_of(config)
    raise_collected(
        f"command line: --target-modules must be of {', '.join(known)} for a {config['model_type']}, got {name}"
        for name in asked
        if name not in known
    )
    return replace(lora, target_modules=tuple(name for name in lora.target_modules if name in known))


def _config(model: str) -> dict[str, Any]:
    return read_model_config(trained_model(ModelSection(name_or_path=model)))
