"""The adapter of a run: from the recipe to plain arguments, how large it is, and how the plan tells of it."""

import math
from collections.abc import Mapping
from typing import Any

from twintune.backends.job import Lora, PrefixTuning, TrainJob
from twintune.converters.names import head_dim, linear_shapes
from twintune.converters.prefix_adapter import prefix_shapes
from twintune.converters.saved_modules import require_own_head, saved_shapes
from twintune.converters.target_modules import describe_target_modules, resolve_target_modules
from twintune.errors import UserError
from twintune.recipe import Recipe
from twintune.recipe_sections import LoraSection, PtuningV2Section


def seam_adapter(recipe: Recipe, config: Mapping[str, Any], backend: str) -> Lora | PrefixTuning:
    """What is trained, in plain arguments.

    Args:
        recipe: as asked.
        config: the model's checked config.json.
        backend: that is to train it.

    Raises:
        UserError: as seam_lora; for a prefix before phi on MindSpore.
    """
    if recipe.adapter == "lora":
        return seam_lora(recipe.lora, config)
    if backend == "ascend" and config["model_type"] == "phi":
        raise UserError(
            "recipe: adapter must be lora for phi with --backend ascend, got 'ptuning_v2' (MindFormers has no Phi, and "
            "ours takes no prefix); use --backend cuda, or adapter=lora"
        )
    return seam_prefix(recipe.ptuning_v2, config)


def seam_lora(lora: LoraSection, config: Mapping[str, Any]) -> Lora:
    """LoRA in plain arguments: use_rslora becomes the lora_alpha with which lora_alpha / r is its scale.

    Args:
        lora: as the recipe asks.
        config: the model's checked config.json.

    Raises:
        UserError: for every target that is no layer of this model, and as require_own_head.
    """
    targets = resolve_target_modules(config, lora.target_modules)
    require_own_head(lora.modules_to_save, config["tie_word_embeddings"])
    alpha = lora.lora_alpha * math.sqrt(lora.r) if lora.use_rslora else lora.lora_alpha
    return Lora(lora.r, alpha, lora.lora_dropout, targets, lora.modules_to_save)


def seam_prefix(settings: PtuningV2Section, config: Mapping[str, Any]) -> PrefixTuning:
    """Prefix tuning in plain arguments, with the sizes of the model's keys.

    Args:
        settings: as the recipe asks.
        config: the model's checked config.json.
    """
    heads = config["num_key_value_heads"] or config["num_attention_heads"]
    return PrefixTuning(
        num_virtual_tokens=settings.num_virtual_tokens,
        encoder_hidden_size=settings.encoder_hidden_size,
        num_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        token_dim=heads * head_dim(config),
    )


def check_room(job: TrainJob, config: Mapping[str, Any]) -> None:
    """Refuse a prefix that leaves too few of the model's positions for the rows.

    Raises:
        UserError: if the longest row does not fit.
    """
    if not isinstance(job.adapter, PrefixTuning):
        return
    positions, virtual = config["max_position_embeddings"], job.adapter.num_virtual_tokens
    if virtual + job.row_length > positions:
        raise UserError(
            f"recipe: ptuning_v2.num_virtual_tokens and the longest row must fit the model's {positions} positions, "
            f"got {virtual} and {job.row_length}; lower one, or data.cutoff_len"
        )


def count_parameters(adapter: Lora | PrefixTuning, config: Mapping[str, Any]) -> int:
    """Numbers that are trained: LoRA's r * (in + out) for each target and whole modules, or a prefix's."""
    if isinstance(adapter, PrefixTuning):
        return sum(map(math.prod, prefix_shapes(adapter).values()))
    shapes = linear_shapes(config, adapter.target_modules)
    whole = saved_shapes(config, adapter.modules_to_save)
    return sum(adapter.r * sum(shape) for shape in shapes.values()) + sum(map(math.prod, whole.values()))


def trained_numbers(adapter: Lora | PrefixTuning) -> str:
    """What the numbers of an adapter are called."""
    return "prefix" if isinstance(adapter, PrefixTuning) else "LoRA matrices"


def adapter_lines(recipe: Recipe, adapter: Lora | PrefixTuning, parameters: int) -> list[tuple[str, str]]:
    """What the plan says of an adapter, as pairs of a name and a sentence."""
    if isinstance(adapter, PrefixTuning):
        made = "trained as they are"
        if adapter.encoder_hidden_size is not None:
            made = f"made by a network of hidden size {adapter.encoder_hidden_size}"
        return [
            ("P-tuning v2", f"{adapter.num_virtual_tokens} virtual tokens before the first of every layer, {made}"),
            ("trainable parameters", f"{parameters:,} (prefix)"),
            ("dropout", "none: a prefix has none"),
        ]
    return [
        ("LoRA on", describe_target_modules(recipe.lora.target_modules, adapter.target_modules)),
        ("trainable parameters", f"{parameters:,} ({_trained(adapter)})"),
        ("adapter's scale", _scale(recipe.lora, adapter)),
        ("dropout", _dropout(adapter)),
    ]


def _scale(asked: LoraSection, lora: Lora) -> str:
    divisor = "sqrt(r) as lora.use_rslora asks" if asked.use_rslora else "r"
    return f"{lora.lora_alpha / lora.r:g}, lora_alpha / {divisor}"


def _trained(lora: Lora) -> str:
    return ", ".join([f"LoRA r {lora.r}", *(f"{module} whole" for module in lora.modules_to_save)])


def _dropout(lora: Lora) -> str:
    if not lora.lora_dropout:
        return "none"
    return f"{lora.lora_dropout}: by a formula of seed, step, token and channel, the same on both backends"
