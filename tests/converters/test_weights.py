import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.converters.base_checkpoint import base_checkpoint
from twintune.converters.names import base_names
from twintune.converters.weights import read_weights, weight_files
from twintune.errors import UserError
from twintune.models import read_model_config

pytestmark = pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes models with torch")
needs_mindspore = pytest.mark.skipif(bool(missing_packages("ascend")), reason="mindspore is not installed")
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", "llama")


def load(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return dict(read_weights(folder, read_model_config(folder)))


def change_weights(folder: Path, change: Any) -> None:
    """Rewrite model.safetensors with `change` applied to its dictionary."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
def test_every_weight_is_read_exactly(model: Path, tmp_path: Path, dtype: str, max_shard_size: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    folder = tmp_path / "saved"
    loaded.save_pretrained(folder, max_shard_size=max_shard_size)
    assert (len(weight_files(folder)) > 1) == (max_shard_size == "40KB")
    weights = load(folder)
    expected = loaded.state_dict()
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, expected[name].float().numpy()), name


def test_what_may_be_there_besides_is_passed_over(tmp_path: Path) -> None:
    import torch

    folder = save_tiny_model(tmp_path, "qwen2", tie_word_embeddings=True)

    def add(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    change_weights(folder, add)
    assert load(folder).keys() == base_names(read_model_config(folder)).keys()


def test_missing_and_unexpected_weights_come_at_once(model: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.1.self_attn.q_norm.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    change_weights(model, change)
    with pytest.raises(UserError) as caught:
        load(model)
    assert sorted(message.removeprefix(f"{model}: ") for message in caught.value.messages) == [
        "model.layers.1.mlp.up_proj.weight must be in the weights, got no such tensor",
        "model.layers.1.self_attn.q_norm.weight must not be in the weights of a llama",
        "model.norm.weight must be in the weights, got no such tensor",
    ]


def test_a_weight_in_two_files_is_told(model: Path) -> None:
    (model / "model-00001-of-00001.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"{EMBEDDING} must be in one file only"):
        load(model)


def test_a_torn_file_is_told(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: must be a whole safetensors file"):
        load(model)


def test_pickled_weights_are_told(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        load(model)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from twintune.backends.ascend.runtime import import_quietly

    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    import_quietly()
    return tmp_path / "cache"


@needs_mindspore
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_checkpoint_holds_every_weight(model: Path, dtype: str) -> None:
    import mindspore as ms

    config = read_model_config(model)
    loaded = ms.load_checkpoint(str(base_checkpoint(model, config, dtype)))
    names = base_names(config)
    assert loaded.keys() == set(names.values())
    for theirs, array in load(model).items():
        parameter = loaded[names[theirs]]
        assert parameter.dtype == getattr(ms, dtype)
        expected = ms.Tensor(array).astype(parameter.dtype).astype(ms.float32).asnumpy()
        assert np.array_equal(ms.Tensor(parameter).astype(ms.float32).asnumpy(), expected), theirs


@needs_mindspore
def test_the_checkpoint_is_converted_once_for_these_weights(model: Path, cache: Path) -> None:
    config = read_model_config(model)
    first = base_checkpoint(model, config, "float32")
    before = first.stat().st_mtime_ns
    assert base_checkpoint(model, config, "float32") == first
    assert first.stat().st_mtime_ns == before
    assert base_checkpoint(model, config, "float16") != first

    def change(tensors: dict[str, Any]) -> None:
        tensors[EMBEDDING][0, 0] += 1

    change_weights(model, change)
    other = base_checkpoint(model, config, "float32")
    assert other != first
    assert json.loads((other.parent / "manifest.json").read_text())["dtype"] == "float32"
    assert len(list((cache / "base").iterdir())) == 3


@needs_mindspore
def test_weights_that_do_not_fit_leave_no_checkpoint(model: Path, cache: Path) -> None:
    change_weights(model, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"model\.norm\.weight must be in the weights"):
        base_checkpoint(model, read_model_config(model), "float32")
    assert list((cache / "base").iterdir()) == []
