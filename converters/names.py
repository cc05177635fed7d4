"""One table of names, Hugging Face on the left and MindFormers on the right, walked in both directions.

It also says which architectures MindFormers' LlamaForCausalLM computes rightly: it loads others
without a word and computes something else (qwen3, gemma, granite, mistral with a window).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MODULES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = {"lora_A.weight": "mindpet_delta_lora_a", "lora_B.weight": "mindpet_delta_lora_b"}
MODULE_NAMES = {ours: theirs for theirs, ours in MODULES.items()}
LORA_NAMES = {ours: theirs for theirs, ours in LORA.items()}
PARAMETER = re.compile(r"model\.layers\.(\d+)\.(\w+\.\w+)\.(\w+)")
# PEFT's file names leave the adapter's own name out; a state dict that was saved as it was has it.
SPELLED = re.compile(r"(?:base_model\.|model\.)*layers\.(\d+)\.(\w+\.\w+)\.(lora_[AB])(?:\.[^.]+)?\.weight")


def base_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Every weight that a model with this config.json has, Hugging Face name to MindFormers name."""
    names = dict(TOP)
    if config.get("tie_word_embeddings", False):
        del names["lm_head.weight"]
    biased = biased_modules(config)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for theirs, ours in (MODULES | NORMS).items():
            names[f"{prefix}{theirs}.weight"] = f"{prefix}{ours}.weight"
        for theirs in biased:
            names[f"{prefix}{theirs}.bias"] = f"{prefix}{MODULES[theirs]}.bias"
    return names


def biased_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The linear layers with a bias: q, k, v for qwen2; q, k, v, o where `attention_bias` says so."""
    attention = tuple(name for name in MODULES if name.startswith("self_attn."))
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
    }
    wanted = set(target_modules)
    return {
        f"model.layers.{layer}.{module}": shapes[module.split(".")[1]]
        for layer in range(config["num_hidden_layers"])
        for module in MODULES
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
            shapes[name] = (config["hidden_size"],) if module.endswith("norm") else embedding
    return shapes


def adapter_names(config: Mapping[str, Any], target_modules: Iterable[str]) -> dict[str, str]:
    """Every LoRA matrix, PEFT name to MindFormers name; no transpose lies between the two."""
    names = {}
    for module in linear_shapes(config, target_modules):
        layer, _, leaf = module.partition(".layers.")[2].partition(".")
        for theirs, ours in LORA.items():
            names[f"base_model.model.{module}.{theirs}"] = f"model.layers.{layer}.{MODULES[leaf]}.{ours}"
    return names


def standard_name(name: str) -> str | None:
    """The name that PEFT's own file has for a LoRA matrix, however it is spelled; None for any other tensor."""
    found = SPELLED.fullmatch(name)
    if found is None or found[2] not in MODULES:
        return None
    return f"base_model.model.model.layers.{int(found[1])}.{found[2]}.{found[3]}.weight"


def peft_name(name: str) -> str | None:
    """The PEFT name of a LoRA matrix of MindFormers' LLaMA; None for any other parameter."""
    found = PARAMETER.fullmatch(name)
    if found is None or found[2] not in MODULE_NAMES or found[3] not in LORA_NAMES:
        return None
    return f"base_model.model.model.layers.{int(found[1])}.{MODULE_NAMES[found[2]]}.{LORA_NAMES[found[3]]}"
