"""Phi's adapters in MindFormers' files: its layers have names there that no other family has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twintune.backends.job import Lora
from twintune.converters.adapter import WEIGHTS, make_initial_adapter, write_adapter
from twintune.converters.adapter_export import SETTINGS
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.mindspore_checkpoint import read_checkpoint
from twintune.converters.target_modules import layers_of
from twintune.errors import UserError
from twintune.exporting import adapter_from_mindformers, adapter_to_mindformers

MODEL: dict[str, Any] = {
    "model_type": "phi",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
LORA = Lora(r=4, lora_alpha=6.5, lora_dropout=0.1, target_modules=layers_of(MODEL))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter on each layer, with B not zero."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(MODEL))
    draw = np.random.default_rng(1)
    initial = make_initial_adapter(MODEL, LORA, seed=0)
    tensors = {name: draw.normal(size=tensor.shape).astype(np.float32) for name, tensor in initial.items()}
    write_adapter(tmp_path / "adapter", tensors, LORA, str(base))
    return tmp_path / "adapter"


def test_there_and_back_again(tmp_path: Path, adapter: Path) -> None:
    there, _ = adapter_to_mindformers(adapter, tmp_path / "there", "ckpt")
    assert "model.layers.1.attention.dense.mindpet_delta_lora_b" in read_checkpoint(there.file)
    back, _ = adapter_from_mindformers(tmp_path / "there", tmp_path / "back")
    assert there.lora == back.lora == LORA
    assert there.matrices == back.matrices == 2 * 6 * 2  # layers, modules, A and B
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "back" / name).read_bytes() == (adapter / name).read_bytes()


def test_a_pattern_that_fits_any_layer_means_those_of_this_model(tmp_path: Path, adapter: Path) -> None:
    there, _ = adapter_to_mindformers(adapter, tmp_path / "there", "ckpt")
    settings = there.file.with_name(SETTINGS)
    said = json.loads(settings.read_text())
    said["pet_config"]["target_modules"] = ".*"
    settings.write_text(json.dumps(said))
    back, _ = adapter_from_mindformers(tmp_path / "there", tmp_path / "back")
    assert back.lora == LORA


def test_a_layer_of_another_family_is_refused(tmp_path: Path, adapter: Path) -> None:
    adapter_to_mindformers(adapter, tmp_path / "there", "ckpt")
    with pytest.raises(UserError, match=r"--target-modules must be of q_proj, .* for a phi, got o_proj"):
        adapter_from_mindformers(tmp_path / "there", tmp_path / "back", target_modules=("q_proj", "o_proj"))
