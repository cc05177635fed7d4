"""The generated MindFormers configuration, for NPU and CPU, held against MindFormers' own classes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import make_job
from twintune.backends import load_backend
from twintune.backends.ascend import runtime
from twintune.backends.ascend.profile import (
    SCHEDULES,
    compiled_length,
    model_section,
    pet_config,
    training_config,
)
from twintune.backends.job import Lora, Schedule
from twintune.errors import UserError
from twintune.models import DEFAULTS, read_model_config

LLAMA = DEFAULTS | {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 128,
}


def section(config: dict[str, Any], device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    sections = model_section(config, batch_size=2, seq_length=32, pad_token_id=0, device=device, dtype=dtype)
    settings: dict[str, Any] = sections["model_config"]
    return settings


@pytest.mark.parametrize("device", ["npu", "cpu"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "phi"])
def test_mindformers_knows_every_key(tmp_path: Path, device: str, family: str) -> None:
    runtime.import_quietly()
    from twintune.backends.ascend.keys import check_keys

    check_keys(training_config(make_job(tmp_path, family), device))


UNKNOWN = {
    "model.model_config.softmax_compute_dtype": "softmax_compute_type",
    "model.model_config.pet_config.lora_dropuot": "lora_dropout",
    "optimizer.beta": "betas",
    "lr_schedule.warmup_step": "warmup_steps",
    "runner_wrapper.use_clip_grads": "use_clip_grad",
    "runner_config.sinkmode": "sink_mode",
    "context.modes": "mode",
    "parallel.full_batches": "full_batch",
    "train_dataset.drop_remainders": "drop_remainder",
    "runner_confg": "runner_config",
}


@pytest.mark.parametrize(("key", "meant"), UNKNOWN.items())
def test_a_key_that_nothing_reads_is_refused(tmp_path: Path, key: str, meant: str) -> None:
    overrides: Any = "float32"
    for part in reversed(key.split(".")):
        overrides = {part: overrides}
    job = make_job(tmp_path, overrides=overrides)
    with pytest.raises(UserError) as caught:
        load_backend("ascend").plan(job)
    assert caught.value.messages == (
        f"recipe: backend.ascend.overrides: {key} must be a key that MindFormers reads, "
        f"got an unknown one; did you mean {meant}?",
    )


@pytest.mark.parametrize(
    ("overrides", "instead"),
    [
        ({"runner_config": {"gradient_accumulation_steps": 4}}, "train.gradient_accumulation_steps"),
        ({"model": {"model_config": {"pad_token_id": 2}}}, "model.pad_token"),
        ({"use_parallel": True}, "backend.ascend.model_parallel or pipeline_stage"),
    ],
)
def test_what_the_recipe_decides_is_not_overridden(tmp_path: Path, overrides: Any, instead: str) -> None:
    """MindFormers resets gradient accumulation to 1 with a mere log line, and averages means over ranks."""
    with pytest.raises(UserError, match=f"must be left to the recipe, got .*{instead}"):
        load_backend("ascend").plan(make_job(tmp_path, overrides=overrides))


def test_the_plan_is_yaml_for_both_devices(tmp_path: Path) -> None:
    plan = load_backend("ascend").plan(make_job(tmp_path, overrides={"optimizer": {"eps": 1e-6}}))
    npu, cpu = (yaml.safe_load(plan[f"mindformers_{device}.yaml"]) for device in ("npu", "cpu"))
    assert npu["context"]["device_target"] == "Ascend"
    assert cpu["context"]["device_target"] == "CPU"
    assert npu["runner_config"]["sink_mode"]
    assert npu["optimizer"]["eps"] == cpu["optimizer"]["eps"] == 1e-6


def test_npu_profile_is_fast_and_cpu_profile_is_what_its_kernels_allow() -> None:
    npu, cpu = section(LLAMA, "npu", "bfloat16"), section(LLAMA, "cpu", "float32")
    assert npu["use_flash_attention"]
    assert npu["fused_rms_norm"]
    assert not npu["use_rope_slice"]
    assert npu["compute_dtype"] == npu["param_init_type"] == "bfloat16"
    assert not cpu["use_flash_attention"]
    assert not cpu["fused_rms_norm"]
    assert cpu["use_rope_slice"]
    dtypes = [value for key, value in cpu.items() if key.endswith(("dtype", "_type")) and key != "type"]
    assert set(dtypes) == {"float32"}, "LlamaConfig's own default is float16"


def test_qwen2_has_its_biases() -> None:
    settings = section(LLAMA | {"model_type": "qwen2", "rope_theta": 1e6})
    assert settings["qkv_has_bias"]
    assert not settings["attn_proj_has_bias"]
    assert settings["theta"] == 1e6


def test_rope_scaling_is_carried() -> None:
    linear = section(LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2}})
    assert (linear["extend_method"], linear["scaling_factor"]) == ("PI", 2.0)
    numbers = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}
    llama3 = section(LLAMA | {"rope_scaling": {"rope_type": "llama3", **numbers}})
    assert llama3["extend_method"] == "LLAMA3"
    assert llama3["scaling_factor"] == numbers
    assert isinstance(llama3["scaling_factor"]["factor"], float)


def test_targets_match_whole_names_only() -> None:
    targets = pet_config(Lora(8, 16, 0.0, ("gate_proj", "q_proj")), "float32")["target_modules"]
    assert targets == "w1$|wq$"


@pytest.mark.parametrize(("row_length", "length"), [(1, 16), (16, 16), (17, 32), (2048, 2048)])
def test_graphs_are_compiled_for_multiples_of_16(row_length: int, length: int) -> None:
    assert compiled_length(row_length) == length


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_equal_the_front_ends_formula(tmp_path: Path, kind: Any, warmup: int) -> None:
    runtime.import_quietly()
    import mindspore as ms
    from mindformers.core.lr import build_lr

    from twintune.schedule import learning_rates

    schedule = Schedule(kind, warmup, 20)
    config = training_config(make_job(tmp_path, schedule=schedule), "cpu")["lr_schedule"]
    theirs = build_lr(dict(config))
    rates = [float(theirs(ms.Tensor(step, ms.int32)).asnumpy()) for step in range(20)]
    assert rates == pytest.approx(learning_rates(schedule, 1e-2).tolist(), rel=1e-5, abs=1e-8)  # float32 there


def test_built_configuration_has_the_models_numbers(tmp_path: Path) -> None:
    job = make_job(tmp_path, "qwen2")
    settings = section(read_model_config(job.model))
    assert settings["n_kv_heads"] == 2
    assert settings["tie_word_embeddings"]
    assert settings["num_layers"] == 2
    assert settings["vocab_size"] == 128


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: runtime.choose_device("cuda"), "must be auto, cpu or npu"),
        (lambda: runtime.choose_device("npu"), "must be a device that is here"),
        (lambda: runtime.choose_dtype("bfloat16", "cpu"), "must be float32 or float16"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch, call: Any, words: str) -> None:
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    with pytest.raises(UserError, match=words):
        call()
