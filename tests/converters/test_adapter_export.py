"""Adapters between PEFT and MindFormers: bit for bit, and nothing guessed, dropped or turned round."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.jobs import Recorder, make_job
from tests.tiny_models import save_tiny_model
from twintune.adapter_base import settings_of
from twintune.backends import load_backend, missing_packages
from twintune.backends.job import Lora, TrainJob
from twintune.converters.adapter import WEIGHTS, make_initial_adapter, read_adapter, read_adapter_for, write_adapter
from twintune.converters.adapter_export import SETTINGS, FileFormat, export_to_mindformers, export_to_peft
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.mindformers_adapter import read_matrices, write_matrices
from twintune.converters.names import LINEAR_MODULES, adapter_names
from twintune.converters.target_modules import layers_of
from twintune.errors import UserError
from twintune.exporting import adapter_from_mindformers, adapter_to_mindformers
from twintune.models import read_model_config

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes adapters with peft")
needs_mindspore = pytest.mark.skipif(bool(missing_packages("ascend")), reason="the ascend extra is not installed")
# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
OLD_NAME = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
MODEL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
LORA = Lora(r=4, lora_alpha=6.5, lora_dropout=0.1, target_modules=("q_proj", "v_proj", "down_proj"))
WHOLE_NAMES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
PREFIX = "base_model.model.model.layers.1.self_attn"
Tensors = dict[str, NDArray[np.float32]]


def trained(lora: Lora = LORA) -> Tensors:
    """An adapter whose B is not zero."""
    draw = np.random.default_rng(1)
    initial = make_initial_adapter(MODEL, lora, seed=0)
    return {name: draw.normal(size=tensor.shape).astype(np.float32) for name, tensor in initial.items()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(MODEL))
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    write_adapter(tmp_path / "adapter", trained(), LORA, str(base))
    return tmp_path / "adapter"


def change_settings(folder: Path, **keys: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("file_format", ["ckpt", "safetensors"])
def test_there_and_back_again(tmp_path: Path, adapter: Path, file_format: FileFormat) -> None:
    there, _ = adapter_to_mindformers(adapter, tmp_path / "there", file_format)
    assert there.file == tmp_path / "there" / f"adapter.{file_format}"
    assert sorted(path.name for path in there.file.parent.iterdir()) == sorted([SETTINGS, there.file.name])
    back, told_by = adapter_from_mindformers(tmp_path / "there", tmp_path / "back")
    assert told_by == str(tmp_path / "there" / SETTINGS)
    assert there.lora == back.lora == LORA
    assert there.matrices == back.matrices == 12
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "back" / name).read_bytes() == (adapter / name).read_bytes()


@needs_mindspore
def test_mindspore_reads_what_was_written(tmp_path: Path, base: Path, adapter: Path) -> None:
    import mindspore

    done = export_to_mindformers(adapter, MODEL, tmp_path / "there", "ckpt", "base")
    loaded = mindspore.load_checkpoint(str(done.file))
    names = adapter_names(MODEL, LORA.target_modules)
    assert loaded.keys() == set(names.values())
    for name, tensor in trained().items():
        np.testing.assert_array_equal(loaded[names[name]].asnumpy(), tensor)


@pytest.mark.parametrize("spelling", ["base_model.model.{}", "{}", "model.{}", "base_model.model.base_model.model.{}"])
@pytest.mark.parametrize("infix", ["", ".default"])
def test_names_are_read_however_they_are_spelled(adapter: Path, spelling: str, infix: str) -> None:
    from safetensors.numpy import save_file

    def spell(name: str) -> str:
        plain = name.removeprefix("base_model.model.")
        return spelling.format(plain.replace(".weight", f"{infix}.weight"))

    save_file({spell(name): tensor for name, tensor in trained().items()}, adapter / WEIGHTS)
    _, tensors = read_adapter_for(adapter, MODEL)
    assert tensors.keys() == trained().keys()


def test_two_adapters_in_one_file_are_refused(adapter: Path) -> None:
    from safetensors.numpy import save_file

    other = {name.replace(".weight", ".other.weight"): tensor for name, tensor in trained().items()}
    save_file(trained() | other, adapter / WEIGHTS)
    with pytest.raises(UserError, match=r"must be there once, got it as .*; save one adapter alone"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("targets", "excluded"),
    [
        (r"^(model\.layers(?=\.).*\.(q_proj|v_proj|down_proj))$", None),  # as ms-swift writes it
        (r".*\.(?:q_proj|k_proj|v_proj|down_proj)", ["k_proj"]),
        (list(WHOLE_NAMES), None),
        (
            [
                f"model.layers.{n}.{m}"
                for n in (0, 1)
                for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
            ],
            None,
        ),
    ],
)
def test_targets_are_resolved_against_the_model(adapter: Path, tmp_path: Path, targets: Any, excluded: Any) -> None:
    change_settings(adapter, target_modules=targets, exclude_modules=excluded)
    done, remarks = adapter_to_mindformers(adapter, tmp_path / "there", "ckpt")
    assert done.lora == LORA
    assert any("these are q_proj, v_proj, down_proj of every layer" in remark for remark in remarks)


def test_all_linear_is_every_linear_layer_but_the_head(tmp_path: Path, base: Path) -> None:
    lora = replace(LORA, target_modules=layers_of(MODEL))
    write_adapter(tmp_path / "all", trained(lora), lora, str(base))
    change_settings(tmp_path / "all", target_modules="all-linear")
    assert read_adapter_for(tmp_path / "all", MODEL)[0] == lora


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (["q_proj", "v_proj", "down_proj", "lm_head"], "got lm_head among them"),
        (["q_proj", "v_proj", "down_proj", "embed_tokens"], "got model.embed_tokens among them"),
        (r".*\.1\..*(q_proj|v_proj|down_proj)", "must name a layer's kind in every layer, got none for model.layers.0"),
        (["q_proj", "v_proj", "down_proj", "o_proj"], "layers.0.self_attn.o_proj.lora_A.weight must be there, got no"),
        (["q_proj", "v_proj"], "layers.0.mlp.down_proj.lora_A.weight must not be there"),
        ("(q_proj", "target_modules must be a regular expression, got '(q_proj'"),
    ],
)
def test_targets_that_are_not_carried_are_refused_by_name(adapter: Path, targets: Any, sentence: str) -> None:
    change_settings(adapter, target_modules=targets)
    with pytest.raises(UserError) as caught:
        read_adapter_for(adapter, MODEL)
    assert any(sentence in message for message in caught.value.messages), caught.value.messages


@pytest.mark.parametrize(
    "name", ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.lora_embedding_A"]
)
def test_full_weights_in_the_file_are_refused(adapter: Path, name: str) -> None:
    from safetensors.numpy import save_file

    save_file(trained() | {name: np.ones((2, 2), np.float32)}, adapter / WEIGHTS)
    with pytest.raises(UserError, match=f"{name} must be LoRA of q_proj, .*, got another tensor"):
        read_adapter(adapter)


@pytest.mark.parametrize("r", [1, 4, 6, 7, 64])
def test_rslora_becomes_the_lora_alpha_of_the_same_scaling(tmp_path: Path, base: Path, r: int) -> None:
    lora = Lora(r, 16.0, 0.0, ("q_proj",))
    write_adapter(tmp_path / "adapter", trained(lora), lora, str(base))
    change_settings(tmp_path / "adapter", use_rslora=True)
    done, remarks = adapter_to_mindformers(tmp_path / "adapter", tmp_path / "there", "ckpt")
    assert np.float32(done.lora.lora_alpha / r) == np.float32(16 / np.sqrt(r))
    assert any(remark.startswith("use_rslora: scaling lora_alpha / sqrt(r)") for remark in remarks)


@needs_torch
@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_half_precision_comes_across_exactly(tmp_path: Path, dtype: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "model", "qwen2")
    settings = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=r".*\.(v_proj|up_proj)",
        use_rslora=True,
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "adapter")
    adapter_to_mindformers(tmp_path / "adapter", tmp_path / "there", "ckpt")
    adapter_from_mindformers(tmp_path / "there", tmp_path / "back")
    lora, tensors = read_adapter(tmp_path / "back")
    assert lora.lora_alpha / lora.r == pytest.approx(6 / np.sqrt(2), rel=1e-15)
    expected = get_peft_model_state_dict(model)
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name].float().numpy()) for name in expected)


def swapped(tensors: Tensors) -> None:
    a, b = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"
    tensors[a], tensors[b] = tensors[b], tensors[a]


def transposed(tensors: Tensors) -> None:
    name = f"{PREFIX}.v_proj.lora_A.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def another_rank(tensors: Tensors) -> None:
    for matrix, axis in (("A", 0), ("B", 1)):
        name = f"{PREFIX}.v_proj.lora_{matrix}.weight"
        tensors[name] = np.repeat(tensors[name], 2, axis=axis)


def without_a_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def without_a_matrix(tensors: Tensors) -> None:
    del tensors[f"{PREFIX}.q_proj.lora_B.weight"]


def with_another_layer(tensors: Tensors) -> None:
    tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"] = np.ones((4, 64), np.float32)


def not_a_number(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.q_proj.lora_B.weight"][3, 1] = np.nan


FAULTS: list[tuple[Callable[[Tensors], None], tuple[str, ...]]] = [
    (swapped, ("q_proj.lora_A.weight must be [4, 64], got [64, 4]; A and B are swapped", "q_proj.lora_B.weight must")),
    (transposed, ("v_proj.lora_A.weight must be [4, 64], got [64, 4]; it is transposed",)),
    (another_rank, ("v_proj.lora_A.weight must be [4, 64], got [8, 64]", "v_proj.lora_B.weight must be [32, 4]")),
    (without_a_layer, ("layers.1.self_attn.q_proj.lora_A.weight must be there",) * 1 + ("layers.1.mlp.down_proj",)),
    (without_a_matrix, ("q_proj.lora_B.weight must be there, got no such matrix",)),
    (with_another_layer, ("layers.2.self_attn.q_proj.lora_A.weight must not be there",)),
    (not_a_number, ("q_proj.lora_B.weight must be finite",)),
]


@pytest.mark.parametrize(("spoil", "sentences"), FAULTS)
@pytest.mark.parametrize("way", ["to MindFormers", "to PEFT"])
def test_faults_are_refused_all_at_once(
    tmp_path: Path, base: Path, way: str, spoil: Callable[[Tensors], None], sentences: tuple[str, ...]
) -> None:
    tensors = trained()
    spoil(tensors)
    out = tmp_path / "out"
    write_matrices(tmp_path / "spoiled.ckpt", {mindformers_name(name): tensors[name] for name in tensors})
    write_adapter(tmp_path / "spoiled", tensors, LORA, str(base))
    export = {
        "to PEFT": lambda: export_to_peft(tmp_path / "spoiled.ckpt", MODEL, out, LORA, "base"),
        "to MindFormers": lambda: export_to_mindformers(tmp_path / "spoiled", MODEL, out, "ckpt", "base"),
    }
    with pytest.raises(UserError) as caught:
        export[way]()
    for sentence in sentences:
        assert any(sentence in message for message in caught.value.messages), caught.value.messages
    assert not out.exists()


def mindformers_name(name: str) -> str:
    more_layers = MODEL | {"num_hidden_layers": 3}
    return adapter_names(more_layers, LINEAR_MODULES)[name]


def test_several_faults_come_in_one_message(tmp_path: Path) -> None:
    tensors = trained()
    transposed(tensors)
    without_a_matrix(tensors)
    not_wanted = {"model.layers.0.attention.w_qkv.mindpet_delta_lora_a": np.ones((4, 64), np.float32)}
    write_matrices(tmp_path / "a.ckpt", {mindformers_name(name): tensors[name] for name in tensors} | not_wanted)
    with pytest.raises(UserError) as caught:
        export_to_peft(tmp_path / "a.ckpt", MODEL, tmp_path / "out", LORA, "base")
    assert len(caught.value.messages) == 3
    assert "w_qkv.mindpet_delta_lora_a must be LoRA of a layer that PEFT has" in caught.value.messages[0]


def test_where_the_rank_is_a_width_zeros_tell_what_shapes_do_not(tmp_path: Path, base: Path) -> None:
    lora = Lora(64, 64.0, 0.0, ("q_proj",))
    initial = make_initial_adapter(MODEL, lora, seed=0)
    write_adapter(tmp_path / "fresh", initial, lora, str(base))
    done = export_to_mindformers(tmp_path / "fresh", MODEL, tmp_path / "there", "ckpt", "base")
    assert done.square == ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    turned = {name.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B"): tensor
              for name, tensor in initial.items()}  # fmt: skip
    write_adapter(tmp_path / "turned", turned, lora, str(base))
    with pytest.raises(UserError, match="A and B look swapped"):
        export_to_mindformers(tmp_path / "turned", MODEL, tmp_path / "no", "ckpt", "base")


def test_settings_are_never_guessed(tmp_path: Path, adapter: Path, base: Path) -> None:
    done = export_to_mindformers(adapter, MODEL, tmp_path / "there", "ckpt", str(base))
    alone = tmp_path / "alone" / "lora.ckpt"
    alone.parent.mkdir()
    done.file.rename(alone)
    with pytest.raises(UserError, match=r"must be known, got no .*; give --pet-config .* or --lora-alpha"):
        settings_of(alone, model=str(base))
    with pytest.raises(UserError, match="base model must be known"):
        settings_of(alone, lora_alpha=6.5, target_modules=("q_proj",))
    with pytest.raises(UserError, match=r"--target-modules must be of q_proj, .*, got wq"):
        settings_of(alone, model="m", lora_alpha=6.5, target_modules=("wq",))
    by_flags = settings_of(alone, model=str(base), lora_alpha=6.5, target_modules=LORA.target_modules)
    assert by_flags.lora == replace(LORA, lora_dropout=0.0)
    by_file = settings_of(alone, pet_config=tmp_path / "there" / SETTINGS, lora_alpha=3.0)
    assert by_file.lora == replace(LORA, lora_alpha=3.0)
    assert by_file.base_model == str(base)


def test_settings_of_another_file_are_refused(tmp_path: Path, adapter: Path, base: Path) -> None:
    done = export_to_mindformers(adapter, MODEL, tmp_path / "there", "ckpt", str(base))
    done.file.write_bytes(done.file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"must be of .*adapter.ckpt, got another sha256"):
        adapter_from_mindformers(done.file, tmp_path / "back")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {}", "pet_config must be there"),
        ("[1, 2", "the settings must be a YAML file"),
        ("pet_config: {lora_rank: 4, lora_alpha: 8}", "target_modules must match one of wq, .*, got None"),
        ("pet_config: {lora_rank: 4, target_modules: wq}", "lora_alpha must be a number, got None"),
        ("pet_config: {lora_rank: 4, lora_alpha: 8, target_modules: '(wq'}", "must be a regular expression"),
        ("pet_config: {lora_rank: 4, lora_alpha: 8, target_modules: wq, exclude_layers: [wq]}", "exclude_layers must"),
    ],
)
def test_a_pet_config_that_does_not_say_all_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        settings_of(tmp_path / "none.ckpt", pet_config=tmp_path / "run.yaml", model="m")


def test_which_checkpoint_is_meant_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got 0 of them; name the file"):
        adapter_from_mindformers(tmp_path, tmp_path / "out")
    for name in ("one.ckpt", "two.ckpt"):
        write_matrices(tmp_path / name, {"model.norm_out.weight": np.ones(4, np.float32)})
    with pytest.raises(UserError, match=r"got 2 of them .*one.ckpt, two.ckpt"):
        adapter_from_mindformers(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"must hold LoRA matrices .*for base weights use: twintune export weights"):
        read_matrices(tmp_path / "one.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A finished run of MindFormers, four steps."""
    pytest.importorskip("mindspore", reason="the ascend extra is not installed")
    job = make_job(tmp_path_factory.mktemp("run"), steps=4, layers=1, lora=LORA)
    job.output_dir.mkdir()
    load_backend("ascend").train(job, Recorder())
    return job


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("checkpoint", {"base weights": 12, "optimizer state": 12}),
        ("checkpoint_trainable", {}),
    ],
)
def test_what_training_left_is_the_adapter(tmp_path: Path, run: TrainJob, kind: str, left_out: dict[str, int]) -> None:
    done, told_by = adapter_from_mindformers(
        run.output_dir / "mindformers" / kind, tmp_path / "out", model=str(run.model)
    )
    assert told_by == str(run.output_dir / "mindformers.yaml")
    assert {key: count for key, count in done.left_out.items() if not key.startswith("counters")} == left_out
    if kind == "checkpoint":
        assert done.step == 4
        assert done.left_out["counters of the training"] > 0
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (run.output_dir / "adapter" / WEIGHTS).read_bytes()
    assert read_adapter(tmp_path / "out")[0] == LORA


def test_safetensors_of_a_training_are_read_alike(tmp_path: Path, run: TrainJob) -> None:
    import mindspore

    (checkpoint,) = (run.output_dir / "mindformers" / "checkpoint").rglob("*.ckpt")
    parameters = mindspore.load_checkpoint(str(checkpoint))
    saved = [{"name": name, "data": value} for name, value in parameters.items() if not isinstance(value, str)]
    mindspore.save_checkpoint(saved, str(tmp_path / "state"), format="safetensors")
    config = read_model_config(run.model)
    done = export_to_peft(tmp_path / "state.safetensors", config, tmp_path / "out", LORA, "base")
    assert done.left_out["optimizer state"] == 12
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (run.output_dir / "adapter" / WEIGHTS).read_bytes()
