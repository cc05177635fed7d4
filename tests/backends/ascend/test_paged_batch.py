"""MindFormers' own decoding with its kernels computed on a CPU, and where it is chosen; no NPU has run it here."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mindspore", reason="the ascend extra is not installed")
pytest.importorskip("torch", reason="compares with transformers")

from tests.backends.ascend.decoded_texts import (
    LATER,
    NEW_TOKENS,
    PROMPTS,
    Text,
    begin,
    check,
    go_on,
    save_random_adapter,
)
from tests.tiny_models import save_tiny_model
from twintune.backends import load_backend
from twintune.backends.ascend import runtime
from twintune.errors import UserError

HEADS_OF_64 = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_adapter(model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def paged(model: Path, adapter: Path) -> Iterator[Any]:
    runtime.import_quietly()
    from tests.backends.ascend.paged_kernels import put_on_cpu

    with pytest.MonkeyPatch.context() as patch:
        put_on_cpu(patch)
        yield load_backend("ascend").load_model(
            model, adapter, pad_token_id=0, device="cpu", dtype="float32", cache_implementation="paged"
        )


def test_texts_are_those_of_transformers(paged: Any, model: Path, adapter: Path) -> None:
    texts = begin(paged, PROMPTS, NEW_TOKENS)
    go_on(paged, texts, 5)
    ended, texts[1] = texts[1], Text(list(LATER), list(paged.replace([1], [LATER])))
    go_on(paged, texts, NEW_TOKENS - 6)
    go_on(paged, [deepcopy(texts[0]), texts[1], deepcopy(texts[2])], 5)  # rows that had all theirs go on beside it
    theirs = load_backend("cuda").load_model(model, adapter, pad_token_id=0, device="cpu", dtype="float32")
    check(theirs, [ended, *texts])
    fewer = begin(paged, PROMPTS[1:2], NEW_TOKENS)  # over what the batch before left in the blocks
    go_on(paged, fewer, 2)
    check(theirs, fewer)


def test_a_prompt_that_the_cache_has_no_room_for_is_refused(paged: Any) -> None:
    begin(paged, PROMPTS, NEW_TOKENS)
    with pytest.raises(ValueError, match="must fit the 48 of the cache, got 52"):
        paged.replace([0], [[1] * 40])


def test_more_tokens_than_positions_are_refused(paged: Any) -> None:
    with pytest.raises(UserError, match="128 positions, got 30 prompt tokens and 100 new ones"):
        paged.start(PROMPTS, 100)


@pytest.mark.parametrize(
    ("device", "dtype", "family", "changes", "cache", "reason"),
    [
        ("npu", "bfloat16", "llama", HEADS_OF_64, "paged", "an NPU is here"),
        ("npu", "float16", "qwen2", HEADS_OF_64, "paged", "an NPU is here"),
        ("cpu", "float16", "llama", HEADS_OF_64, "static", "no kernel on a CPU"),
        ("npu", "float32", "llama", HEADS_OF_64, "static", "16 bits"),
        ("npu", "bfloat16", "phi", HEADS_OF_64 | {"partial_rotary_factor": 0.5}, "static", "no phi"),
        ("npu", "bfloat16", "llama", HEADS_OF_64 | {"hidden_size": 64}, "static", "no heads of size 16"),
    ],
)
def test_an_npu_decodes_with_mindformers_own_cache(
    tmp_path: Path, device: str, dtype: str, family: str, changes: dict[str, Any], cache: str, reason: str
) -> None:
    model = save_tiny_model(tmp_path, family, **changes)
    choose = load_backend("ascend").choose_cache
    choice = choose("auto", model, None, device, dtype)
    assert choice.value == cache
    assert reason in choice.reason
    assert choose("static", model, None, device, dtype).value == "static"
    if cache == "static":
        with pytest.raises(UserError, match=rf"cache_implementation must be auto or static.*got 'paged' \(.*{reason}"):
            choose("paged", model, None, device, dtype)


def test_a_prefix_is_decoded_with_our_cache(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "llama", **HEADS_OF_64)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    choice = load_backend("ascend").choose_cache("auto", model, tmp_path, "npu", "bfloat16")
    assert (choice.value, choice.reason) == ("static", "MindFormers' PagedAttention reads no trained prefix")


def test_the_npus_network_is_the_one_of_mindformers_own_prediction(model: Path) -> None:
    """MindFormers' classes know every key, and take them."""
    runtime.import_quietly()
    from mindformers.models.llama import LlamaConfig

    from twintune.backends.ascend import paged_batch, profile
    from twintune.models import read_model_config

    sizes: dict[str, Any] = {"batch_size": 1, "seq_length": 64, "pad_token_id": 0, "device": "npu", "dtype": "bfloat16"}
    settings = profile.model_section(read_model_config(model), **sizes)["model_config"]
    paged_batch.put_on_paged_settings(settings, num_blocks=12)
    config = LlamaConfig(**{name: value for name, value in settings.items() if name != "type"})
    assert (config.use_past, config.is_dynamic, config.use_flash_attention) == (True, True, True)
    assert (config.block_size, config.num_blocks) == (16, 12)
    assert config.rotary_dtype == config.compute_dtype
    context = profile.context("npu")
    paged_batch.put_on_paged_context(context)
    assert context["jit_config"] == {"jit_level": "O0", "infer_boost": "on"}
