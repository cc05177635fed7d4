"""Prefix adapters as files: what PEFT reads, what training goes on from, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from twintune.backends.job import PrefixTuning
from twintune.converters.adapter import WEIGHTS, check_adapter_settings, read_any_adapter, write_adapter
from twintune.converters.adapter_settings import CONFIG, read_adapter_config
from twintune.converters.prefix_adapter import EMBEDDING, ENCODER, PROMPT, make_initial_prefix, prompt_embeddings
from twintune.errors import UserError

PLAIN = PrefixTuning(3, None, num_layers=2, num_attention_heads=2, token_dim=8)
PROJECTED = replace(PLAIN, encoder_hidden_size=5)
BOTH = pytest.mark.parametrize("prefix", [PLAIN, PROJECTED], ids=["plain", "projected"])


def save(folder: Path, prefix: PrefixTuning = PLAIN) -> Path:
    write_adapter(folder, make_initial_prefix(prefix, 1), prefix, "base")
    return folder


def change_settings(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(settings | changes), encoding="utf-8")


@BOTH
def test_what_is_trained_comes_back_bit_for_bit(prefix: PrefixTuning, tmp_path: Path) -> None:
    told, tensors = read_any_adapter(save(tmp_path / "adapter", prefix), to_train=True)
    assert told == prefix
    expected = make_initial_prefix(prefix, 1)
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)


@BOTH
def test_what_answers_is_one_embedding(prefix: PrefixTuning, tmp_path: Path) -> None:
    told, tensors = read_any_adapter(save(tmp_path / "adapter", prefix))
    assert told == PLAIN
    assert tensors[EMBEDDING].shape == (3, 2 * 2 * 8)
    assert np.array_equal(tensors[EMBEDDING], prompt_embeddings(prefix, make_initial_prefix(prefix, 1)))


def test_the_first_numbers_have_the_distributions_of_torch() -> None:
    large = PrefixTuning(100, 64, num_layers=4, num_attention_heads=4, token_dim=128)
    tensors = make_initial_prefix(large, 1)
    assert abs(tensors[EMBEDDING].std() - 1) < 0.02
    for place, inputs in (("0", 128), ("2", 64)):
        for leaf in ("weight", "bias"):
            numbers = tensors[f"prompt_encoder.transform.{place}.{leaf}"]
            assert 0.9 / inputs**0.5 < np.abs(numbers).max() <= 1 / inputs**0.5
    assert not np.array_equal(tensors[EMBEDDING], make_initial_prefix(large, 2)[EMBEDDING])


def drop(file: Path, name: str) -> None:
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors | {"other": np.zeros(1, np.float32)}, file)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda folder: (folder / WEIGHTS).unlink(), "the adapter must have this file, got nothing"),
    "torn": (lambda folder: (folder / WEIGHTS).write_bytes(b"torn"), "must be a whole safetensors file"),
    "missing": (lambda folder: drop(folder / WEIGHTS, PROMPT), f"{PROMPT} must be there, got no such tensor"),
    "besides": (lambda folder: drop(folder / WEIGHTS, PROMPT), f"it must hold {PROMPT}, got other besides"),
    "shape": (lambda folder: change_settings(folder, token_dim=4), f"{PROMPT} must be [3, 16], got [3, 32]"),
    "NaN": (
        lambda folder: save_file({PROMPT: np.full((3, 32), np.nan, np.float32)}, folder / WEIGHTS),
        f"{PROMPT} must be finite, got NaN or infinity",
    ),
    "settings": (
        lambda folder: change_settings(folder, num_layers=0, num_attention_heads="2"),
        "num_layers must be a whole number of at least 1, got 0",
    ),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_folder_is_refused(fault: str, tmp_path: Path) -> None:
    spoil, sentence = SPOILED[fault]
    spoil(save(tmp_path / "adapter"))
    with pytest.raises(UserError) as caught:
        read_any_adapter(tmp_path / "adapter")
    assert any(sentence in message for message in caught.value.messages), caught.value.messages


def test_a_projection_without_its_network_cannot_be_trained_on(tmp_path: Path) -> None:
    (save(tmp_path / "adapter", PROJECTED) / ENCODER).unlink()
    read_any_adapter(tmp_path / "adapter")
    with pytest.raises(UserError, match=f"{ENCODER}: the adapter must have this file, got nothing"):
        read_any_adapter(tmp_path / "adapter", to_train=True)


def test_a_prefix_is_answered_with_and_neither_merged_nor_exported(tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter")
    check_adapter_settings(folder)
    with pytest.raises(UserError, match="peft_type must be 'LORA' here, got 'PREFIX_TUNING'"):
        read_adapter_config(folder)
