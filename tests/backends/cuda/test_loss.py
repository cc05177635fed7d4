"""The loss with the head on trained positions only equals the one of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

import torch

from tests.jobs import make_job, random_rows
from twintune.backends.cuda.loss import pad_right, token_losses, trained_tokens
from twintune.backends.cuda.model import adapter_parameters
from twintune.backends.cuda.train import load_for_training
from twintune.converters.rows import Row


def rows_of_arrays() -> list[Row]:
    rows = [Row(np.array(ids, np.int32), np.array(labels, np.int32)) for ids, labels in random_rows(6)]
    rows[4].labels[:] = -100  # a row without a trained token among others
    return rows


@pytest.fixture(params=["llama", "qwen2", "phi"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return load_for_training(make_job(tmp_path, request.param))


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}


def test_loss_and_gradients_equal_those_of_transformers(model: Any) -> None:
    rows = rows_of_arrays()
    input_ids, labels = pad_right(rows, 0, "cpu")
    tokens = trained_tokens(rows)
    ours = token_losses(model, input_ids, labels).sum() / tokens
    attention_mask = (input_ids != 0).long()  # theirs hides the pads; ours never looks at them
    theirs = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, num_items_in_batch=tokens).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    expected = gradients(model, theirs)
    for name, gradient in gradients(model, ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_head_sees_the_trained_positions_only(model: Any) -> None:
    rows = rows_of_arrays()
    shapes = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    token_losses(model, *pad_right(rows, 0, "cpu"))
    assert shapes == [(trained_tokens(rows), 128)]


def test_the_first_label_of_a_row_never_counts() -> None:
    row = Row(np.array([5, 6, 7], np.int32), np.array([5, -100, 7], np.int32))
    assert trained_tokens([row]) == 1
