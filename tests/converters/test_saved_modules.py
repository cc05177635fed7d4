"""Adapters with modules trained whole: read by name and shape, carried to MindFormers' files and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twintune.backends.job import Lora
from twintune.converters.adapter import WEIGHTS, make_initial_adapter, read_adapter, read_adapter_for, write_adapter
from twintune.converters.adapter_export import SETTINGS, FileFormat, export_to_mindformers, export_to_peft
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.merged_weights import merged_weights
from twintune.converters.names import base_shapes
from twintune.converters.pet_config import read_pet_config
from twintune.converters.saved_modules import saved_shapes, trained_names
from twintune.converters.weights import find_weights
from twintune.errors import UserError

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "tie_word_embeddings": False,
}
MODELS = {"llama": {"model_type": "llama"} | SIZES, "phi": {"model_type": "phi"} | SIZES}
LORA = Lora(2, 4.0, 0.0, ("q_proj",), ("embed_tokens", "lm_head"))
PREFIX = "base_model.model."
EMBEDDING, HEAD, BIAS = (f"{PREFIX}{name}" for name in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"))


def tensors_of(family: str) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(1)
    shapes = {name: tensor.shape for name, tensor in make_initial_adapter(MODELS[family], LORA, seed=0).items()}
    shapes |= {PREFIX + name: shape for name, shape in saved_shapes(MODELS[family], LORA.modules_to_save).items()}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(folder: Path, tensors: dict[str, NDArray[np.float32]]) -> Path:
    from safetensors.numpy import save_file

    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", tensors_of("llama"), LORA, "base")
    return tmp_path / "adapter"


def test_a_heads_bias_belongs_to_it() -> None:
    assert list(saved_shapes(MODELS["llama"], ("lm_head",))) == ["lm_head.weight"]
    assert saved_shapes(MODELS["phi"], ("lm_head",)) == {"lm_head.weight": (40, 16), "lm_head.bias": (40,)}
    assert saved_shapes(MODELS["phi"], ()) == {}
    assert trained_names(MODELS["phi"], LORA)[EMBEDDING] == "model.tok_embeddings.embedding_weight"


def test_an_adapter_is_read_as_it_was_written(tmp_path: Path, family: str) -> None:
    expected = tensors_of(family)
    write_adapter(tmp_path / "adapter", expected, LORA, "base")
    lora, tensors = read_adapter_for(tmp_path / "adapter", MODELS[family])
    assert lora == LORA
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wrapper", [".modules_to_save.default.", ".modules_to_save."])
def test_names_of_a_state_dict_are_read_too(adapter: Path, wrapper: str) -> None:
    expected = tensors_of("llama")
    spelled = {}
    for name, tensor in expected.items():
        stem, _, leaf = name.rpartition(".")
        spelled[name if "lora" in name else f"{stem}{wrapper}{leaf}"] = tensor
    _, tensors = read_adapter_for(save(adapter, spelled), MODELS["llama"])
    assert tensors.keys() == expected.keys()


def test_a_lost_module_is_told(adapter: Path) -> None:
    tensors = tensors_of("llama")
    del tensors[EMBEDDING]
    tensors[HEAD] = tensors[HEAD][:-1]
    with pytest.raises(UserError) as caught:
        read_adapter_for(save(adapter, tensors), MODELS["llama"])
    lost, shape = caught.value.messages
    assert f"{EMBEDDING} must be there, got no such matrix" in lost
    assert f"{HEAD} must be [40, 16], got [39, 16]" in shape


def test_a_module_that_the_settings_do_not_name_is_told(adapter: Path) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(UserError, match=rf"{EMBEDDING} must be LoRA of .*, or of modules_to_save lm_head, got another"):
        read_adapter(adapter)


@pytest.mark.parametrize("value", [["score"], "lm_head", [3]])
def test_other_modules_are_refused(adapter: Path, value: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": value}))
    with pytest.raises(UserError, match="modules_to_save must be a list of embed_tokens, lm_head, got"):
        read_adapter(adapter)


def test_a_head_that_is_the_embedding_is_refused(adapter: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.modules_to_save must be empty for a model whose head is its embedding"):
        read_adapter_for(adapter, MODELS["llama"] | {"tie_word_embeddings": True})


@pytest.mark.parametrize("file_format", ["ckpt", "safetensors"])
def test_there_and_back_again(tmp_path: Path, family: str, file_format: FileFormat) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(adapter, tensors_of(family), LORA, "base")
    there = export_to_mindformers(adapter, MODELS[family], tmp_path / "there", file_format, "base")
    said = read_pet_config(tmp_path / "there" / SETTINGS).lora
    assert said.modules_to_save == LORA.modules_to_save
    back = export_to_peft(there.file, MODELS[family], tmp_path / "back", said, "base")
    assert there.matrices == back.matrices == len(tensors_of(family))
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "back" / name).read_bytes() == (adapter / name).read_bytes()


def test_a_module_that_a_checkpoint_lacks_is_told(tmp_path: Path, adapter: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = export_to_mindformers(adapter, MODELS["llama"], tmp_path / "there", "safetensors", "base").file
    without = {name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}
    save_file(without, file)
    with pytest.raises(UserError, match=f"{HEAD} must be there, got no such matrix"):
        export_to_peft(file, MODELS["llama"], tmp_path / "back", LORA, "base")


def test_other_parameters_that_mindformers_trained_are_refused(tmp_path: Path) -> None:
    pet_config = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "target_modules": "wq$"}
    wrong = pet_config | {"freeze_exclude": ["*norm*"], "freeze_include": ["*wv*"]}
    (tmp_path / "run.yaml").write_text(json.dumps({"pet_config": wrong}))
    with pytest.raises(UserError) as caught:
        read_pet_config(tmp_path / "run.yaml")
    exclude, include = caught.value.messages
    assert "freeze_exclude must be of *tok_embeddings.*, *lm_head.*, got ['*norm*']" in exclude
    assert "freeze_include must be empty" in include


def test_a_merge_takes_whole_modules_for_the_bases_own(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = MODELS["phi"]
    base = {name: np.ones(shape, np.float32) for name, shape in base_shapes(config).items()}
    tensors = tensors_of("phi")
    save_file(base, tmp_path / "model.safetensors")
    merged = dict(merged_weights(find_weights(tmp_path, config), LORA, tensors, "float32"))
    replaced = {PREFIX + name: merged[name] for name in saved_shapes(config, LORA.modules_to_save)}
    assert set(replaced) == {EMBEDDING, HEAD, BIAS}
    assert all(np.array_equal(weight, tensors[name]) for name, weight in replaced.items())
    assert (merged["model.final_layernorm.weight"] == 1).all()
