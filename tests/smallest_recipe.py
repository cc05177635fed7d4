"""The smallest recipe that must work as it stands, with its model folder and its records beside it."""

import json
from pathlib import Path
from typing import Any

from tests.tiny_models import SIZES, save_tiny_model
from tests.tiny_tokenizers import save_sentencepiece_model

RECIPE = """\
model: {name_or_path: ./tiny-llama}
data: {train: ./data.json, template: vicuna_v1.1, cutoff_len: 256}
lora: {r: 8, lora_alpha: 16, lora_dropout: 0.0, target_modules: [q_proj, k_proj, v_proj, o_proj]}
train: {per_device_train_batch_size: 2, max_steps: 10, learning_rate: 1.0e-3, seed: 0}
"""
RECORDS: list[Any] = [
    {
        "instruction": f"题目：小华有 {number} 颗糖，又买了 3 颗，一共有几颗？",
        "input": "",
        "output": f"\n由题目可知：{number} + 3 = {number + 3}。答案是 {number + 3}。",
    }
    for number in range(12)
]
VOCABULARY = 400  # of the tokenizer, and so of the model


def write_smallest_recipe(folder: Path, *, weights: bool = True, layers: int = 2) -> Path:
    """Write recipe.yaml, data.json and tiny-llama into a folder; without weights, no torch is needed.

    One layer compiles in two thirds of the time on MindSpore.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "num_hidden_layers": layers}
    if weights:
        save_tiny_model(folder / "tiny-llama", "llama", **sizes)
    save_sentencepiece_model(folder / "tiny-llama", vocab_size=VOCABULARY)
    if not weights:
        write_json(folder / "tiny-llama" / "config.json", {"model_type": "llama"} | SIZES | sizes)
    write_json(folder / "data.json", RECORDS)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.yaml"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
