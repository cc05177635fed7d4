from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.converters.families import EVERY_MODULE, FAMILIES
from twintune.converters.names import LINEAR_MODULES, LORA, adapter_names, base_names, linear_shapes, peft_name
from twintune.models import read_model_config

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes models with torch and peft")
# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("mistral", {}),
    ("mistral", {"head_dim": 16, "tie_word_embeddings": True}),
    ("phi", {}),
    ("phi", {"num_key_value_heads": 4}),
]


@needs_torch
@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_base_names_are_those_of_the_file(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    from safetensors import safe_open

    folder = save_tiny_model(tmp_path, family, **changes)
    with safe_open(folder / "model.safetensors", "np") as tensors:
        written = set(tensors.keys())
    names = base_names(read_model_config(folder))
    assert names.keys() == written
    assert len(set(names.values())) == len(names)


@needs_torch
@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_lora_names_and_shapes_are_those_of_peft(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path, family, **changes)
    config = read_model_config(folder)
    for targets in (LINEAR_MODULES, ("v_proj", "down_proj", "fc2")):
        base = AutoModelForCausalLM.from_pretrained(folder)
        shapes = linear_shapes(config, targets)
        assert {name: tuple(base.get_submodule(name).weight.shape) for name in shapes} == shapes
        model = get_peft_model(base, LoraConfig(r=3, target_modules=list(targets), task_type="CAUSAL_LM"))
        expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        got = {}
        for name, (out_features, in_features) in shapes.items():
            got[f"base_model.model.{name}.lora_A.weight"] = (3, in_features)
            got[f"base_model.model.{name}.lora_B.weight"] = (out_features, 3)
        assert got == expected
        names = adapter_names(config, targets)
        assert names.keys() == expected.keys()
        assert {peft_name(ours): ours for ours in names.values()} == names


@pytest.mark.skipif(
    bool(missing_packages("ascend") or missing_packages("cuda")), reason="compares with MindFormers' own names"
)
def test_mindformers_names_are_those_of_its_own_conversion(tmp_path: Path) -> None:
    from twintune.backends.ascend.runtime import import_quietly

    import_quietly()
    from mindformers.models.llama import LlamaForCausalLM

    config = read_model_config(save_tiny_model(tmp_path, "llama", attention_bias=True))
    for theirs, ours in base_names(config).items():
        assert LlamaForCausalLM.convert_name(theirs) == ours


def test_lora_names_follow_the_layer_they_are_on() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 11,
    }
    names = adapter_names(config, ("gate_proj",))
    assert len(names) == 22
    assert (
        names["base_model.model.model.layers.10.mlp.gate_proj.lora_B.weight"]
        == "model.layers.10.feed_forward.w1.mindpet_delta_lora_b"
    )


def test_the_tables_name_every_linear_layer_once() -> None:
    assert {name.split(".")[1] for name in EVERY_MODULE} == set(LINEAR_MODULES)
    assert len(set(EVERY_MODULE.values())) == len(EVERY_MODULE)
    assert all(family.modules.items() <= EVERY_MODULE.items() for family in FAMILIES.values())
    assert len(set(LORA.values())) == len(LORA)
