"""Packed rows train the same tokens with the same losses as their conversations one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

import torch
from torch.nn.functional import cross_entropy

from tests.jobs import Recorder, make_packed_job, packed_rows
from twintune.backends import load_backend
from twintune.backends.cuda.loss import NOTHING, pad_right, token_losses
from twintune.backends.cuda.model import adapter_parameters
from twintune.backends.cuda.packed import BY_CONVERSATION, FLASH, choose_attention, in_one_line, set_attention
from twintune.backends.cuda.train import load_for_training
from twintune.backends.job import Lora
from twintune.converters.adapter import read_adapter
from twintune.converters.rows import Row

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LOSS = 1e-5  # of a token, float32
GRADIENT = 1e-4


def conversations(row: Row) -> list[Row]:
    """The conversations of a packed row, apart."""
    borders = np.cumsum(row.lengths)[:-1]
    parts = zip(np.split(row.input_ids, borders), np.split(row.labels, borders), strict=True)
    return [Row(input_ids, labels) for input_ids, labels in parts]


def whole_token_losses(model: Any, input_ids: Any, labels: Any, attention: Any = NOTHING) -> Any:
    """-log p of each trained token, in their order."""
    logits = model(input_ids=input_ids, use_cache=False, **attention).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
    return losses[labels[:, 1:] != -100]


@pytest.fixture(scope="module", params=["llama", "qwen2", "mistral", "phi"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The same model twice: for plain rows, and for packed ones."""
    job = make_packed_job(tmp_path_factory.mktemp(request.param), request.param)
    plain, packed = load_for_training(job), load_for_training(job)
    set_attention(packed.get_base_model(), BY_CONVERSATION)
    return plain, packed


def test_losses_of_tokens_equal_those_of_the_conversations_alone(models: tuple[Any, Any]) -> None:
    plain, packed = models
    rows = packed_rows()[:4]
    with torch.no_grad():
        ours = whole_token_losses(packed, *in_one_line(rows, "cpu"))
        alone = [whole_token_losses(plain, *pad_right([one], 0, "cpu")) for row in rows for one in conversations(row)]
    assert len(ours) == sum(row.trained_tokens for row in rows)
    difference = float((ours - torch.cat(alone)).abs().max())
    assert difference <= LOSS, f"largest difference {difference:.2e}"


def test_gradients_equal_those_of_the_conversations_in_a_padded_batch(models: tuple[Any, Any]) -> None:
    plain, packed = models
    rows = packed_rows()[:4]
    inputs = in_one_line(rows, "cpu"), pad_right([one for row in rows for one in conversations(row)], 0, "cpu")
    gradients = []
    for model, batch in zip((packed, plain), inputs, strict=True):
        model.zero_grad()
        token_losses(model, *batch).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in adapter_parameters(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=GRADIENT, atol=GRADIENT, msg=name)


def test_a_conversation_does_not_see_the_one_before(models: tuple[Any, Any]) -> None:
    _, packed = models
    row = packed_rows()[0]
    first, *_ = row.lengths
    other = Row(row.input_ids.copy(), row.labels, lengths=row.lengths)
    other.input_ids[:first] = np.roll(other.input_ids[:first], 1)
    with torch.no_grad():
        one, two = (
            packed(input_ids=ids, use_cache=False, **attention).logits[0]
            for ids, _, attention in (in_one_line([row], "cpu"), in_one_line([other], "cpu"))
        )
    assert torch.equal(one[first:], two[first:])
    assert not torch.allclose(one[:first], two[:first])


def test_a_packed_run_says_which_attention_it_uses(tmp_path: Path) -> None:
    job = make_packed_job(tmp_path, accumulation=3, steps=4)
    recorder = Recorder()
    load_backend("cuda").train(job, recorder)
    rows = packed_rows()
    assert [step.tokens for step in recorder.steps] == [
        sum(rows[number].trained_tokens for number in step.ravel()) for step in job.order
    ]
    assert any(text.startswith("attention of packed rows: sdpa_by_conversation") for text in recorder.texts)
    read_adapter(job.output_dir / "adapter")


def test_dropout_of_the_adapter_is_drawn_for_packed_rows_too(tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(losses))
        job = make_packed_job(folder, steps=4, lora=Lora(4, 8, 0.3, ("q_proj", "v_proj")), seed=seed)
        recorder = Recorder()
        load_backend("cuda").train(job, recorder)
        losses.append([step.loss for step in recorder.steps])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected", "words"),
    [
        ("cuda", "bfloat16", True, FLASH, "flash_attn is installed"),
        ("cuda", "bfloat16", False, BY_CONVERSATION, "flash_attn is not installed"),
        ("cuda", "float32", True, BY_CONVERSATION, "does not compute in float32"),
        ("cpu", "bfloat16", True, BY_CONVERSATION, "does not run on cpu"),
    ],
)
def test_flash_attention_is_used_where_it_can_run(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, installed: bool, expected: str, words: str
) -> None:
    monkeypatch.setattr("twintune.backends.cuda.packed.find_spec", lambda name: installed or None)
    choice = choose_attention(device, dtype)
    assert choice.value == expected
    assert words in choice.reason
