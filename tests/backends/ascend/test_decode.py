"""Decoding with a cache on MindSpore: token for token what the whole rows give, there and with transformers.

A prefix is compared in tests/backends/test_prefix_both.py.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

mindspore = pytest.importorskip("mindspore", reason="the ascend extra is not installed")
pytest.importorskip("torch", reason="compares with transformers")

from tests.backends.ascend.decoded_texts import (
    LATER,
    LOGITS,
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
from twintune.backends.ascend.cached_batch import SHORTEST, bucket
from twintune.backends.job import Quantization
from twintune.errors import UserError

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {  # model, its config.json, whether in NF4
    "llama": ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, False),
    "qwen2": ("qwen2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "num_hidden_layers": 1}, True),
    "phi": ("phi", {"num_hidden_layers": 1}, False),
}


@dataclass
class Decoded:
    """What a model said, and the same model on the other backend."""

    ours: Any
    theirs: Any
    texts: list[Text]


@pytest.fixture(scope="module", params=KINDS)
def decoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    family, changes, in_4_bit = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny_model(folder / "model", family, **changes)
    settings: dict[str, Any] = {"pad_token_id": 0, "device": "cpu", "dtype": "float32"}
    settings["quantization"] = Quantization(double_quant=False) if in_4_bit else None
    adapter = save_random_adapter(model, folder)
    ours, theirs = (load_backend(name).load_model(model, adapter, **settings) for name in ("ascend", "cuda"))
    texts = begin(ours, PROMPTS, NEW_TOKENS)
    go_on(ours, texts, 5)
    ended, texts[1] = texts[1], Text(list(LATER), list(ours.replace([1], [LATER])))
    go_on(ours, texts, NEW_TOKENS - 6)
    go_on(ours, [deepcopy(texts[0]), texts[1], deepcopy(texts[2])], 5)  # rows that had all theirs go on beside it
    return Decoded(ours, theirs, [ended, *texts])


def test_texts_are_those_of_transformers(decoded: Decoded) -> None:
    check(decoded.theirs, decoded.texts)


@pytest.mark.parametrize("decoded", ["llama"], indirect=True)  # the others' whole rows equal transformers elsewhere
def test_texts_are_those_without_a_cache(decoded: Decoded) -> None:
    check(decoded.ours, decoded.texts)


def test_a_smaller_batch_is_decoded_by_the_same_graphs(decoded: Decoded) -> None:
    """Nor does it read what the batch before left in the cache, where NaN times a share of 0 would be NaN."""
    (one_token,) = decoded.ours.batch._compiled.values()
    for layer in one_token.layers:
        layer.values.set_data(mindspore.ops.full_like(layer.values, float("nan")))
    texts = begin(decoded.ours, [PROMPTS[1]], NEW_TOKENS)
    go_on(decoded.ours, texts, 2)
    np.testing.assert_allclose(texts[0].logits, decoded.texts[0].logits[:3], rtol=0, atol=LOGITS)
    assert len(decoded.ours.batch._compiled) == 1
    assert [len(cell.compile_cache) for cell in (decoded.ours.batch._prompt, one_token)] == [1, 1]


def test_weights_are_held_once(decoded: Decoded) -> None:
    batch = decoded.ours.batch
    (one_token,) = batch._compiled.values()
    caches = {id(room) for layer in one_token.layers for room in (layer.keys, layer.values)}
    network = {id(parameter) for parameter in batch._network.get_parameters()}
    assert len(caches) == 2 * len(batch._layers)
    assert {id(parameter) for parameter in one_token.get_parameters()} - caches <= network
    assert {id(parameter) for parameter in batch._prompt.get_parameters()} <= network


def test_a_prompt_that_the_cache_has_no_room_for_is_refused(decoded: Decoded) -> None:
    begin(decoded.ours, PROMPTS, NEW_TOKENS)
    with pytest.raises(ValueError, match=f"must fit the {SHORTEST} of the cache, got 72"):
        decoded.ours.replace([0], [[1] * 60])


def test_more_tokens_than_positions_are_refused(decoded: Decoded) -> None:
    with pytest.raises(UserError, match="128 positions, got 30 prompt tokens and 100 new ones"):
        decoded.ours.start(PROMPTS, 100)


@pytest.mark.parametrize(("tokens", "most", "length"), [(1, 999, 64), (64, 999, 64), (65, 999, 128), (130, 200, 200)])
def test_lengths_come_in_buckets(tokens: int, most: int, length: int) -> None:
    assert bucket(tokens, most) == length
