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
from twintune.backends.cuda.model import load_base
from twintune.backends.job import Lora, Quantization
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.errors import UserError
from twintune.generation import TextGenerator
from twintune.sampling import Sampling

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 99], [1, 7, 7, 120, 33], [1]]
NEW_TOKENS = 24
EOS = [2, *range(10, 40)]


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


def generate_with_transformers(
    model: Any, prompts: list[list[int]], eos: list[int], **settings: Any
) -> list[list[int]]:
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
        **settings,
    )
    rows = output[:, longest:].tolist()
    return [row[: min([row.index(token) for token in eos if token in row], default=None)] for row in rows]


def test_greedy_text_equals_that_of_transformers(pair: tuple[LanguageModel, Any]) -> None:
    ours, theirs = pair
    unbounded = TextGenerator(ours, Numbers(), [2]).generate_ids(PROMPTS, Sampling(NEW_TOKENS))
    assert unbounded == generate_with_transformers(theirs, PROMPTS, [2])
    longest = max(unbounded, key=len)
    eos = [2, longest[3], longest[9]]  # so that rows end at different steps
    expected = generate_with_transformers(theirs, PROMPTS, eos)
    assert len({len(row) for row in expected}) > 1
    for batch_size in (2, 8):  # below 4, prompts take the places of texts that ended
        assert TextGenerator(ours, Numbers(), eos, batch_size).generate_ids(PROMPTS, Sampling(NEW_TOKENS)) == expected


def test_penalized_text_equals_that_of_transformers(pair: tuple[LanguageModel, Any]) -> None:
    ours, theirs = pair
    sampling = Sampling(NEW_TOKENS, repetition_penalty=1.5, min_new_tokens=7)
    expected = [
        generate_with_transformers(theirs, [prompt], EOS, repetition_penalty=1.5, min_new_tokens=7)[0]
        for prompt in PROMPTS  # one by one: transformers penalizes the padding on the left, too
    ]
    assert TextGenerator(ours, Numbers(), EOS, 2).generate_ids(PROMPTS, sampling) == expected
    assert expected != generate_with_transformers(theirs, PROMPTS, EOS)


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


def test_rows_come_and_go_and_each_has_the_logits_of_its_whole_row(base: Path) -> None:
    model = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32")
    rows = [list(prompt) for prompt in PROMPTS]
    model.start(rows, max_new_tokens=6)
    for token, places in ((11, [2]), (12, []), (13, [0, 3]), (14, []), (15, [1]), (16, [])):
        logits = model.step(np.full(len(rows), token))
        rows = [[*row, token] for row in rows]
        for place in places:
            rows[place] = [1, 60 + token, 70 + place, 5][: 4 - place]
        for row, whole in enumerate(model.logits(rows)):  # which leaves the cache alone
            if row not in places:
                np.testing.assert_allclose(logits[row], whole[-1], rtol=0, atol=2e-5)
        if places:
            logits = model.replace(places, [rows[place] for place in places])
            for given, whole in zip(logits, model.logits([rows[place] for place in places]), strict=True):
                np.testing.assert_allclose(given, whole[-1], rtol=0, atol=2e-5)


def test_a_row_that_ended_is_stepped_on_beyond_its_room_and_leaves_the_others_alone(base: Path) -> None:
    model = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32")
    row = [1, 40, 41]
    model.start([PROMPTS[0], [1]], max_new_tokens=3)
    for turn in range(6):
        if turn % 3 == 0:
            row = [1, 40, 41 + turn]
            model.replace([1], [row])
        row.append(90 + turn)
        logits = model.step(np.array([7, 90 + turn]))
        np.testing.assert_allclose(logits[1], model.logits([row])[0][-1], rtol=0, atol=2e-5)


def test_nf4_is_decoded_as_transformers_decodes_it(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base, nf4 = save_tiny_model(tmp_path / "model", "llama"), Quantization(double_quant=True)
    ours = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32", quantization=nf4)
    theirs = load_base(base, "cpu", "float32", nf4)
    texts = TextGenerator(ours, Numbers(), EOS, 2).generate_ids(PROMPTS, Sampling(NEW_TOKENS))
    assert texts == generate_with_transformers(theirs, PROMPTS, EOS)


def test_bfloat16_is_decoded_as_whole_rows_are(base: Path, tmp_path: Path) -> None:
    adapter = save_random_adapter(base, tmp_path / "adapter")
    model = CudaBackend().load_model(base, adapter, pad_token_id=0, device="cpu", dtype="bfloat16")
    rows = [list(prompt) for prompt in PROMPTS]
    logits = model.start(rows, max_new_tokens=4)
    for token in (11, 12, 13):
        for row, whole in enumerate(model.logits(rows)):
            # bfloat16 keeps 8 bits, and other kernels round elsewhere
            assert np.abs(logits[row] - whole[-1]).mean() < 0.03 * whole[-1].std()
        logits = model.step(np.full(len(rows), token))
        rows = [[*row, token] for row in rows]


def test_a_prompt_beyond_the_room_is_refused(base: Path) -> None:
    model = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32")
    model.start([[1, 4, 5], [1]], max_new_tokens=4)
    with pytest.raises(ValueError, match="no longer than 3 tokens, got 4"):
        model.replace([1], [[1, 2, 3, 4]])


def test_more_tokens_than_positions_are_refused(base: Path) -> None:
    model = CudaBackend().load_model(base, None, pad_token_id=0, device="cpu", dtype="float32")
    with pytest.raises(UserError, match="128 positions, got 7 prompt tokens and 122 new ones"):
        model.start(PROMPTS, max_new_tokens=122)
