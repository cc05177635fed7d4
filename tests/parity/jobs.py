"""Tiny recipes of every kind that both backends compute, and bundles of them, each recorded once for all tests."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer, save_sentencepiece_model
from twintune.converters.target_modules import layers_of
from twintune.parity.bundle import Bundle
from twintune.parity.cross import cross
from twintune.parity.record import Settings, record
from twintune.recipe import Recipe, load_recipe

STEPS = 50
VOCABULARY = 400
CHINESE = [
    {"instruction": f"题目：小华有 {number} 颗糖，又买了 3 颗？", "output": f"{number} + 3 = {number + 3}。"}
    for number in range(12)
]
ENGLISH = [
    {"instruction": f"Natalia sold {number} clips. How many?", "output": f"The answer is {number}." * (1 + number % 3)}
    for number in range(12)
]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Kind:
    """A model's config.json beside tests.tiny_models, and the recipe's keys that matter here.

    Where a second layer would tell nothing new, there is none: MindSpore compiles five graphs a kind.
    """

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    packing: bool = False
    optim: str = "adamw_torch"
    learning_rate: float = 2e-3
    target_modules: tuple[str, ...] = ()  # none: every linear layer
    lora_dropout: float = 0.0


KINDS = {
    "llama-linear-rope-adam-weight-decay": Kind(
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "num_hidden_layers": 1},
        optim="adam_weight_decay",
        learning_rate=5e-4,
    ),
    "llama-llama3-rope-bias-tied-ungrouped-packed": Kind(
        "llama",
        {
            "rope_scaling": LLAMA3_ROPE,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "num_hidden_layers": 1,
        },
        packing=True,
        target_modules=("q_proj", "up_proj", "down_proj"),
    ),
    "qwen2": Kind("qwen2", accumulation=3, lora_dropout=0.1),
    "mistral": Kind("mistral", {"num_hidden_layers": 1}, target_modules=("k_proj", "v_proj", "o_proj", "gate_proj")),
    "phi-packed": Kind(
        "phi",
        {"num_hidden_layers": 1},
        packing=True,
        target_modules=("Wqkv", "out_proj", "fc1", "fc2"),
        lora_dropout=0.05,
    ),
}


def write_recipe(folder: Path, kind: Kind) -> Path:
    """Write recipe.yaml with its model and data into a new folder."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "initializer_range": 0.1}
    model = save_tiny_model(folder / "model", kind.family, **(sizes | kind.config))
    (save_chatml_tokenizer if kind.family == "qwen2" else save_sentencepiece_model)(model)
    (folder / "data.json").write_text(json.dumps(CHINESE + ENGLISH, ensure_ascii=False), encoding="utf-8")
    targets = kind.target_modules or layers_of({"model_type": kind.family})
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "model: {name_or_path: ./model}\n"
        f"data: {{train: ./data.json, template: {'chatml' if kind.family == 'qwen2' else 'vicuna_v1.1'}, "
        f"cutoff_len: 256, packing: {str(kind.packing).lower()}, preprocessing_num_workers: 1}}\n"
        f"lora: {{r: 8, lora_alpha: 16, lora_dropout: {kind.lora_dropout}, "
        f"target_modules: [{', '.join(targets)}]}}\n"
        f"train: {{per_device_train_batch_size: 2, gradient_accumulation_steps: {kind.accumulation}, "
        f"max_steps: {STEPS}, learning_rate: {kind.learning_rate}, warmup_ratio: 0.05, weight_decay: 0.01, "
        f"optim: {kind.optim}, max_grad_norm: 0.5, seed: 0}}\n",
        encoding="utf-8",
    )
    return recipe


def machine(backend: str) -> list[str]:
    """What of a recipe belongs to the machine: a CUDA device is taken where there is one, float32 everywhere."""
    return [f"backend.name={backend}", "backend.device=auto", "backend.dtype=float32"]


@dataclass
class Recordings:
    """Bundles of KINDS by name and backend, each recorded where it is first asked for."""

    folder: Path
    recipes: dict[str, Path] = field(default_factory=dict)
    bundles: dict[tuple[str, str], Bundle] = field(default_factory=dict)

    def recipe(self, kind: str, backend: str) -> Recipe:
        if kind not in self.recipes:
            self.recipes[kind] = write_recipe(self.folder / kind, KINDS[kind])
        return load_recipe(self.recipes[kind], machine(backend))

    def bundle(self, kind: str, backend: str) -> Bundle:
        if (kind, backend) not in self.bundles:
            recipe = self.recipe(kind, backend)
            self.bundles[kind, backend] = record(recipe, self.folder / kind / backend, Settings())
        return self.bundles[kind, backend]

    def pair(self, kind: str) -> tuple[Bundle, Bundle]:
        """Both backends, each with the other's adapter measured too."""
        if (kind, "both") not in self.bundles:
            cuda = self.bundle(kind, "cuda")
            ascend = record(self.recipe(kind, "ascend"), self.folder / kind / "ascend", Settings(), cuda)
            self.bundles[kind, "ascend"] = ascend
            self.bundles[kind, "both"] = cross(self.recipe(kind, "cuda"), cuda, ascend)
        return self.bundles[kind, "both"], self.bundles[kind, "ascend"]
