"""Tiny random models, made on the spot: float32 safetensors of every family both backends compute."""

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # at the usual 0.02 logits are so alike that rounding picks the token
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.4}),
    "granite": ("GraniteConfig", {}),  # of the same shape, yet computed otherwise: to be refused
}


def save_tiny_model(folder: Path, family: str, **changes: Any) -> Path:
    """Save a random model of two layers; `changes` are keys of its config.json. Returns the folder."""
    import torch
    import transformers

    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**(SIZES | settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".bias"):  # transformers makes them zero: losing them would not show
                torch.nn.init.normal_(parameter, std=0.2)
            elif family == "phi" and "layernorm" in parameter_name:  # and these one
                torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    model.to(torch.float32).save_pretrained(folder)
    return folder
