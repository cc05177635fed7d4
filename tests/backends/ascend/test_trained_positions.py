"""Logits where a label is trained alone: the same losses and gradients."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import make_job
from twintune.backends.ascend.runtime import import_quietly

import_quietly()

import mindspore as ms
from mindspore import nn, ops

from twintune.backends.ascend.probe import AscendProbe
from twintune.backends.ascend.trained_positions import (
    TrainedPositions,
    most_trained,
    positions_of,
    put_on_trained_positions,
)
from twintune.backends.job import Lora
from twintune.converters import mindrecord
from twintune.converters.rows import IGNORED

TOLERANCE = 2e-6  # of float32 sums that leave out zeros


class Places(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A network that gives the places it was told."""

    def __init__(self, places: ms.Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.places = places

    def construct(self, input_ids: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        return ops.depend(self.places, input_ids) + 0


def test_trained_places_come_first_and_in_their_order() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    labels = np.full((2, 9), IGNORED, np.int32)
    labels[0, [0, 3, 8]] = labels[1, [1, 5]] = 7  # the first label of a row is no target
    places = ms.Parameter(ms.Tensor(np.zeros(6, np.int32)), name="places", requires_grad=False)
    told = TrainedPositions(Places(places), places)(ms.Tensor(labels), ms.Tensor(labels))
    assert told.asnumpy().tolist() == [2, 7, 8, 12, 0, 1]


def test_as_many_as_the_fullest_micro_batch_trains(tmp_path: Path) -> None:
    job = make_job(tmp_path, accumulation=3)
    rows = list(mindrecord.read_rows(job.rows / "rows.mindrecord"))
    most = max(sum(rows[row].trained_tokens for row in batch) for batch in job.order.reshape(-1, 2))
    assert most <= most_trained(job) < most + 16


def test_losses_and_gradients_are_those_of_all_positions(tmp_path: Path) -> None:
    job = make_job(tmp_path, accumulation=2, layers=1, lora=Lora(4, 8, 0.0, ("q_proj", "down_proj")))
    everywhere, trained = AscendProbe(job), AscendProbe(job)
    cell = trained._mean_gradients
    positions = most_trained(job)
    assert positions < positions_of(job)
    cell.network = put_on_trained_positions(job, cell.network, positions)
    expected, given = (probe.gradients(job.order[0]) for probe in (everywhere, trained))
    assert given.tokens == expected.tokens
    np.testing.assert_allclose(given.row_losses, expected.row_losses, rtol=TOLERANCE)
    for name, gradient in expected.gradients.items():
        np.testing.assert_allclose(given.gradients[name], gradient, rtol=0, atol=TOLERANCE, err_msg=name)
