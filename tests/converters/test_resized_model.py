"""Resized embeddings against transformers' own, and a tokenizer whose ids are ours."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer, save_sentencepiece_model
from twintune.backends import missing_packages
from twintune.converters.resized_model import embedding_rows, with_rows
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError
from twintune.models import read_model_config
from twintune.recipe_sections import ModelSection
from twintune.resizing import trained_model

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes models with torch")
ADDED = ("<|user|>", "<|bot|>")
TEXT = "<|user|>What is 3 plus 4?<|bot|>"
TOKENS = 400  # of the tokenizer without ADDED
ROWS = 448  # 402 rounded up to a multiple of 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_base(folder: Path, family: str, vocabulary: int, **changes: Any) -> Path:
    return save_chatml_tokenizer(save_tiny_model(folder, family, vocab_size=vocabulary, **changes))


def section(model: Path, multiple: int | None = 64, added: tuple[str, ...] = ADDED) -> ModelSection:
    return ModelSection(name_or_path=str(model), added_tokens=added, pad_to_multiple_of=multiple)


def test_rows_are_rounded_up() -> None:
    assert [embedding_rows(tokens, 64) for tokens in (1, 64, 65, 50_297)] == [64, 64, 128, 50_304]
    assert embedding_rows(402, 1) == 402


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(6, 3), (6,)])
def test_new_rows_are_the_mean_of_the_old(dtype: Any, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(dtype)
    more, fewer = with_rows(weight, 8), with_rows(weight, 4)
    assert more.dtype == fewer.dtype == dtype
    np.testing.assert_array_equal(more[:6], weight)
    expected = weight.astype(np.float64).mean(axis=0).astype(np.float32).astype(dtype)
    np.testing.assert_array_equal(more[6:], np.stack([expected] * 2))
    np.testing.assert_array_equal(fewer, weight[:4])


@needs_torch
@pytest.mark.parametrize(("family", "vocabulary"), [("llama", 400), ("qwen2", 400), ("phi", 400), ("phi", 512)])
def test_weights_are_those_of_transformers(tmp_path: Path, family: str, vocabulary: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base", family, vocabulary)
    resized = trained_model(section(base))
    assert read_model_config(resized)["vocab_size"] == ROWS
    ours = AutoModelForCausalLM.from_pretrained(resized)
    theirs = AutoModelForCausalLM.from_pretrained(base)
    theirs.resize_token_embeddings(ROWS, mean_resizing=True)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # transformers adds noise of 1e-9 of the covariance: 3e-5 of the weights' own deviation, 0.2, to new rows
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4, msg=name)
        torch.testing.assert_close(one[:TOKENS], other[:TOKENS], rtol=0, atol=0, msg=name)


@needs_torch
def test_transformers_reads_our_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = save_base(tmp_path / "base", "llama", 400)
    resized = trained_model(section(base))
    ours = load_tokenizer(base, added_tokens=ADDED)
    theirs = AutoTokenizer.from_pretrained(resized)
    assert theirs.convert_tokens_to_ids(list(ADDED)) == [ours.special_tokens[token] for token in ADDED] == [400, 401]
    assert theirs(TEXT).input_ids == ours.encode(TEXT, True).ids.tolist()
    assert theirs.chat_template == ours.chat_template
    assert load_tokenizer(resized).special_tokens == ours.special_tokens


@needs_torch
def test_a_model_is_made_once(tmp_path: Path, cache: Path) -> None:
    base = save_base(tmp_path / "base", "llama", 400)
    resized = trained_model(section(base))
    made = (resized / "model.safetensors").stat().st_mtime_ns
    assert trained_model(section(base)) == resized
    assert trained_model(section(resized)) == resized, "what has its rows and tokens stays"
    assert (resized / "model.safetensors").stat().st_mtime_ns == made
    assert trained_model(section(base, 128)) != resized
    assert trained_model(section(base, None)) == base
    assert len([path for path in (cache / "models").iterdir() if path.is_dir()]) == 2


@needs_torch
def test_the_same_rows_need_no_folder_but_for_new_tokens(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", ROWS)
    assert trained_model(section(base, added=())) == base
    resized = trained_model(section(base))
    assert resized != base
    assert (resized / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert load_tokenizer(resized).special_tokens.keys() >= set(ADDED)


@needs_torch
def test_a_token_of_the_config_must_keep_its_row(tmp_path: Path, cache: Path) -> None:
    base = save_base(tmp_path / "base", "llama", 512, pad_token_id=500)
    with pytest.raises(UserError, match=r"config\.json: pad_token_id must be below the 448 rows .*, got 500"):
        trained_model(section(base))
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_a_sentencepiece_model_takes_no_tokens(tmp_path: Path) -> None:
    base = save_sentencepiece_model(tmp_path / "base")
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 64) | {"num_attention_heads": 4, "num_hidden_layers": 1}
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400} | sizes))
    with pytest.raises(UserError, match=r"must have a tokenizer with tokenizer\.json, got a SentencePiece model alone"):
        trained_model(section(base).model_copy(update={"pad_token": "<unk>"}))
