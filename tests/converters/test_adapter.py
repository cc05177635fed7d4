import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.backends.job import Lora
from twintune.converters.adapter import WEIGHTS, make_initial_adapter, read_adapter, write_adapter
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.names import linear_shapes
from twintune.errors import UserError
from twintune.models import read_model_config

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="loads adapters with peft")
# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
SETTINGS: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
}
LORA = Lora(r=4, lora_alpha=8.0, lora_dropout=0.1, target_modules=("q_proj", "down_proj"))


def trained_adapter(config: dict[str, Any] = SETTINGS) -> dict[str, NDArray[np.float32]]:
    """An adapter whose B is not zero, so that losing it would show."""
    draw = np.random.default_rng(1)
    initial = make_initial_adapter(config, LORA, seed=0)
    return {name: draw.normal(size=tensor.shape).astype(np.float32) for name, tensor in initial.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", trained_adapter(), LORA, "base")
    return tmp_path / "adapter"


def change_settings(folder: Path, **keys: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_initial_adapter_is_kaiming_uniform_and_zero() -> None:
    lora = Lora(64, 16.0, 0.0, ("q_proj", "down_proj"))
    tensors = make_initial_adapter(SETTINGS, lora, seed=3)
    assert len(tensors) == 2 * 2 * 2
    for module, (out_features, in_features) in linear_shapes(SETTINGS, lora.target_modules).items():
        a, b = (tensors[f"base_model.model.{module}.lora_{matrix}.weight"] for matrix in "AB")
        assert (a.shape, b.shape) == ((64, in_features), (out_features, 64))
        assert a.dtype == b.dtype == np.float32
        assert not b.any()
        # kaiming_uniform with a = sqrt(5): bound sqrt(6 / (1 + 5) / fan_in)
        bound = 1 / np.sqrt(in_features)
        assert np.abs(a).max() <= np.float32(bound)
        # at least 4,096 draws: the standard deviation of their spread is below 1 % of bound / sqrt(3)
        np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.05)
        assert abs(a.mean()) < 0.05 * bound


def test_the_seed_decides_the_initial_adapter() -> None:
    one, same, other = (make_initial_adapter(SETTINGS, LORA, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert all(not np.array_equal(one[name], other[name]) for name in one if "lora_A" in name)


def test_an_adapter_is_read_as_it_was_written(folder: Path) -> None:
    lora, tensors = read_adapter(folder)
    assert lora == LORA
    expected = trained_adapter()
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    with pytest.raises(UserError, match="must be a new or empty folder"):
        write_adapter(folder, expected, LORA, "base")


@needs_torch
@pytest.mark.filterwarnings(OLD_NAME)
def test_peft_loads_what_was_written(tmp_path: Path) -> None:
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "model", "llama")
    expected = trained_adapter(read_model_config(base))
    write_adapter(tmp_path / "adapter", expected, LORA, str(base))
    # peft only warns of missing keys: here a warning is an error
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    state = get_peft_model_state_dict(model)
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[name].numpy(), expected[name]) for name in expected)
    settings = model.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, 8.0, 0.1)
    assert settings.target_modules == {"q_proj", "down_proj"}


@needs_torch
@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_peft_writes_is_read(tmp_path: Path, dtype: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "model", "qwen2"))
    settings = LoraConfig(r=2, lora_alpha=6, target_modules=["v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, settings).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "adapter")
    lora, tensors = read_adapter(tmp_path / "adapter")
    assert lora == Lora(2, 6, 0.0, ("v_proj",))
    expected = get_peft_model_state_dict(model)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, expected[name].float().numpy())


def test_bfloat16_is_read_where_no_framework_has_taught_it_to_numpy(folder: Path) -> None:
    import ml_dtypes
    from safetensors.numpy import save_file

    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in trained_adapter().items()}
    save_file(tensors, folder / WEIGHTS)
    expected = sum(float(tensor.astype(np.float64).sum()) for tensor in tensors.values())
    program = (
        "import sys; from pathlib import Path; from twintune.converters.adapter import read_adapter; "
        "print(sum(float(t.astype('float64').sum()) for t in read_adapter(Path(sys.argv[1]))[1].values()))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(expected, abs=1e-9)  # the order of the sum may differ


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"use_dora": True}, "use_dora must be False, got True"),
        ({"lora_bias": True}, "lora_bias must not be set, got True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication must not be set, got [[0, 2]]"),
        ({"layers_to_transform": [0]}, "layers_to_transform must be None, got [0]"),
        ({"task_type": "SEQ_CLS"}, "task_type must be 'CAUSAL_LM', got 'SEQ_CLS'"),
        ({"bias": "all"}, "bias must be 'none', got 'all'"),
        ({"target_modules": 3}, "target_modules must be a list of names or a regular expression, got 3"),
        ({"target_modules": []}, "target_modules must be a list of names or a regular expression, got []"),
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out must be False, got True"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern must be {}, got {'q_proj': 2}"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern must be {}, got {'q_proj': 2}"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be True, got 'pissa'"),
        ({"r": None}, "r must be a whole number, got None"),
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number, got '16'"),
    ],
)
def test_what_would_be_lost_is_refused(folder: Path, keys: dict[str, Any], sentence: str) -> None:
    change_settings(folder, **keys)
    with pytest.raises(UserError) as caught:
        read_adapter(folder)
    (message,) = caught.value.messages
    assert message.startswith(f"{folder / CONFIG}: {sentence}")


def test_all_refusals_come_at_once(folder: Path) -> None:
    change_settings(folder, use_dora=True, bias="all", target_modules=None)
    with pytest.raises(UserError) as caught:
        read_adapter(folder)
    assert len(caught.value.messages) == 3


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_broken_settings_are_told(folder: Path, content: str) -> None:
    (folder / CONFIG).write_text(content)
    with pytest.raises(UserError, match=f"{CONFIG}: the adapter's settings must be"):
        read_adapter(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_told(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: .* must .*, got "):
        read_adapter(folder)


def test_pickled_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"got the pickled adapter_model\.bin, not read"):
        read_adapter(folder)


def test_a_torn_file_is_told(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for part in (whole[:-8], whole[:4], b""):
        (folder / WEIGHTS).write_bytes(part)
        with pytest.raises(UserError, match="the adapter must be a whole safetensors file"):
            read_adapter(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_told_by_name(tmp_path: Path, value: float) -> None:
    tensors = trained_adapter()
    name = min(tensors)
    tensors[name][0, 0] = value
    write_adapter(tmp_path / "adapter", tensors, LORA, "base")
    with pytest.raises(UserError) as caught:
        read_adapter(tmp_path / "adapter")
    assert caught.value.messages == (f"{tmp_path / 'adapter' / WEIGHTS}: {name} must be finite, got NaN or infinity",)
