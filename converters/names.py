"""The tables of names in families.py, walked in both directions, and the shapes of what they name."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from twintune.converters.families import EVERY_MODULE, family_of

LINEAR_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),  # llama, qwen2, mistral
    *("dense", "fc1", "fc2"),  # phi, with q_proj, k_proj, v_proj
)
LORA = {"lora_A.weight": "mindpet_delta_lora_a", "lora_B.weight": "mindpet_delta_lora_b"}
MODULE_NAMES = {ours: theirs for theirs, ours in EVERY_MODULE.items()}
LORA_NAMES = {ours: theirs for theirs, ours in LORA.items()}
PARAMETER = re.compile(r"model\.layers\.(\d+)\.(\w+\.\w+)\.(\w+)")
# PEFT's file names leave the adapter's own name out; a state dict that was saved as it was has it.
SPELLED = re.compile(r"(?:base_model\.|model\.)*layers\.(\d+)\.(\w+\.\w+)\.(lora_[AB])(?:\.[^.]+)?\.weight")


def base_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Every weight that a model with this config.json has, Hugging Face name to MindFormers name."""
    family = family_of(config)
    names = dict(family.top)
    if config.get("tie_word_embeddings", False):
        del names["lm_head.weight"]
    biased = biased_modules(config)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for theirs, ours in family.modules.items():
            names[f"{prefix}{theirs}.weight"] = f"{prefix}{ours}.weight"
        for theirs, ours in family.norms.items():
            names[f"{prefix}{theirs}"] = f"{prefix}{ours}"
        for theirs in biased:
            names[f"{prefix}{theirs}.bias"] = f"{prefix}{family.modules[theirs]}.bias"
    return names


def biased_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The linear layers with a bias: all for phi; q, k, v for qwen2; q, k, v, o where `attention_bias` says so."""
    modules = family_of(config).modules
    attention = tuple(name for name in modules if name.startswith("self_attn."))
    if config["model_type"] == "phi":
        return tuple(modules)
    if config["model_type"] == "qwen2":
        return attention[:3]
    return attention if config.get("attention_bias", False) else ()


def head_dim(config: Mapping[str, Any]) -> int:
    """The size of one attention head."""
    given = config.get("head_dim")
    return int(given) if given else int(config["hidden_size"] // config["num_attention_heads"])


def linear_shapes(config: Mapping[str, Any], target_modules: Iterable[str]) -> dict[str, tuple[int, int]]:
    """[out, in] of every targeted linear layer, by full Hugging Face module name, in layer order."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * head_dim(config)
    groups = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head_dim(config)
    shapes = {
        "q_proj": (heads, hidden),
        "k_proj": (groups, hidden),
        "v_proj": (groups, hidden),
        "o_proj": (hidden, heads),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
        "dense": (hidden, heads),
        "fc1": (inner, hidden),
        "fc2": (hidden, inner),
    }
    wanted = set(target_modules)
    return {
        f"model.layers.{layer}.{module}": shapes[module.split(".")[1]]
        for layer in range(config["num_hidden_layers"])
        for module in family_of(config).modules
        if module.split(".")[1] in wanted
    }


def base_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in base_names, by Hugging Face name; MindFormers keeps the same."""
    embedding = (config["vocab_size"], config["hidden_size"])
    linear = linear_shapes(config, LINEAR_MODULES)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in base_names(config):
        module, _, leaf = name.rpartition(".")
        if module in linear:
            shapes[name] = linear[module] if leaf == "weight" else linear[module][:1]
        else:
            whole = embedding[1:] if module.endswith("norm") else embedding
            shapes[name] = whole[:1] if leaf == "bias" else whole
    return shapes


def adapter_names(config: Mapping[str, Any], target_modules: Iterable[str]) -> dict[str, str]:
    """Every LoRA matrix, PEFT name to MindFormers name; no transpose lies between the two."""
    names = {}
    for module in linear_shapes(config, target_modules):
        layer, _, leaf = module.partition(".layers.")[2].partition(".")
        for theirs, ours in LORA.items():
            names[f"base_model.model.{module}.{theirs}"] = f"model.layers.{layer}.{EVERY_MODULE[leaf]}.{ours}"
    return names


def standard_name(name: str) -> str | None:
    """The name that PEFT's own file has for a LoRA matrix, however it is spelled; None for any other tensor."""
    found = SPELLED.fullmatch(name)
    if found is None or found[2] not in EVERY_MODULE:
        return None
    return f"base_model.model.model.layers.{int(found[1])}.{found[2]}.{found[3]}.weight"


def peft_name(name: str) -> str | None:
    """The PEFT name of a LoRA matrix in MindSpore; None for any other parameter."""
    found = PARAMETER.fullmatch(name)
    if found is None or found[2] not in MODULE_NAMES or found[3] not in LORA_NAMES:
        return None
    return f"base_model.model.model.layers.{int(found[1])}.{MODULE_NAMES[found[2]]}.{LORA_NAMES[found[3]]}"
