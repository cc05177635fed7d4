"""Logits and greedy text of the cuda backend equal those of transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import save_tiny_model
from twintune.backends import LanguageModel
from twintune.backends.cuda import CudaBackend
from twintune.backends.job import Lora
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.errors import UserError
from twintune.generation import TextGenerator
from twintune.sampling import Sampling

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 99], [1, 7, 7, 120, 33], [1]]
NEW_TOKENS = 24


class Numbers:
    """A decoder whose text is the ids."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def save_random_adapter(model: Path, folder: Path) -> Path:
    """An adapter whose B is not zero, so that it changes what the model says."""
    lora = Lora(4, 8, 0.0, ("q_proj", "v_proj", "o_proj", "down_proj"))
    tensors = make_initial_adapter(json.loads((model / "config.json").read_text()), lora, seed=0)
    draw = np.random.default_rng(5)
    for name in tensors:
        tensors[name] = draw.normal(0, 0.2, tensors[name].shape).astype(np.float32)
    write_adapter(folder, tensors, lora, str(model))
    return folder


@pytest.fixture(params=["llama", "qwen2", "mistral", "phi"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", request.param)


@pytest.fixture(params=[False, True], ids=["base", "adapter"])
def pair(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> tuple[LanguageModel, Any]:
    """Ours and that of transformers."""
    from peft import PeftModel

    theirs = AutoModelForCausalLM.from_pretrained(base)
    adapter = None
    if request.param:
        adapter = save_random_adapter(base, tmp_path / "adapter")
        theirs = PeftModel.from_pretrained(theirs, adapter)
    ours = CudaBackend().load_model(base, adapter, pad_token_id=0, device="cpu", dtype="float32")
    return ours, theirs.eval()


def generate_with_transformers(model: Any, prompts: list[list[int]], eos: list[int]) -> list[list[int]]:
    """Greedy new tokens of a left-padded batch, up to the first eos."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    rows = output[:, longest:].tolist()
    return [row[: min([row.index(token) for token in eos if token in row], default=None)] for row in rows]


def test_greedy_text_equals_that_of_transformers(pair: tuple[LanguageModel, Any]) -> None:
    ours, theirs = pair
    unbounded = TextGenerator(ours, Numbers(), [2]).generate_ids(PROMPTS, Sampling(NEW_TOKENS))
    assert unbounded == generate_with_transformers(theirs, PROMPTS, [2])
    longest = max(unbounded, key=len)
    eos = [2, longest[3], longest[9]]  # so that rows end at different steps
    ended = TextGenerator(ours, Numbers(), eos).generate_ids(PROMPTS, Sampling(NEW_TOKENS))
    assert ended == generate_with_transformers(theirs, PROMPTS, eos)
    assert len({len(row) for row in ended}) > 1


def test_logits_equal_those_of_transformers(pair: tuple[LanguageModel, Any]) -> None:
    ours, theirs = pair
    for row, logits in zip(PROMPTS, ours.logits(PROMPTS), strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([row])).logits[0].numpy()
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


def test_decoding_step_by_step_gives_the_logits_of_the_whole_row(base: Path) -> None:
    model = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32")
    rows = [list(prompt) for prompt in PROMPTS]
    logits = model.start(rows, max_new_tokens=4)
    for token in (11, 12, 13):
        for row, whole in enumerate(model.logits(rows)):
            np.testing.assert_allclose(logits[row], whole[-1], rtol=0, atol=2e-5)
        logits = model.step(np.full(len(rows), token))
        rows = [[*row, token] for row in rows]


def test_more_tokens_than_positions_are_refused(base: Path) -> None:
    model = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32")
    with pytest.raises(UserError, match="128 positions, got 7 prompt tokens and 122 new ones"):
        model.start(PROMPTS, max_new_tokens=122)
