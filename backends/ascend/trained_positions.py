"""Logits only where a label is trained: the head and the loss see as many positions as the fullest micro-batch trains.

A graph has one shape for all steps, so that their number is the job's; what a micro-batch has too few of is filled up
with positions that are not trained, and masked as before.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindformers.wrapper.wrapper import get_real_models
from mindspore import nn, ops

from twintune.backends.ascend.profile import LENGTH_MULTIPLE, compiled_length
from twintune.backends.job import TrainJob
from twintune.converters import mindrecord
from twintune.converters.rows import IGNORED


def most_trained(job: TrainJob) -> int:
    """Trained tokens of the job's fullest micro-batch, rounded up to what NPU matrix units take; all at most."""
    rows = mindrecord.read_rows(job.rows / "rows.mindrecord")
    trained = np.array([np.count_nonzero(row.labels[1:] != IGNORED) for row in rows])
    most = int(trained[job.order.reshape(-1, job.batch)].sum(axis=1).max())
    return min(-(-most // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, positions_of(job))


def positions_of(job: TrainJob) -> int:
    """Positions in a micro-batch."""
    return job.batch * compiled_length(job.row_length)


class TrainedHead(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A head that sees some positions; every one of them in evaluation mode.

    Args:
        head: hidden states to logits.
        places: of the positions, a parameter int32 [positions].
    """

    def __init__(self, head: nn.Cell, places: ms.Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.head = head
        self.places = places
        self.set_train()

    def construct(self, hidden: ms.Tensor) -> ms.Tensor:
        """[rows, length, hidden size] to [positions, vocabulary]."""
        if not self.training:
            return self.head(hidden)
        return self.head(ops.gather(hidden.reshape(-1, hidden.shape[-1]), self.places, 0))


class TrainedLoss(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """MindFormers' loss of these positions; of every one in evaluation mode."""

    def __init__(self, loss: nn.Cell, places: ms.Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.places = places
        self.set_train()

    def construct(self, logits: ms.Tensor, labels: ms.Tensor, mask: ms.Tensor) -> Any:
        """Logits of the positions, labels and mask [rows * length]."""
        if not self.training:
            return self.loss(logits, labels, mask)
        return self.loss(logits, ops.gather(labels, self.places, 0), ops.gather(mask, self.places, 0))


class TrainedPositions(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A network whose head and loss are told where the labels of its rows are trained."""

    def __init__(self, network: nn.Cell, places: ms.Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.places = places
        self.first = ops.TopK(sorted=True)

    def construct(self, *rows: ms.Tensor) -> Any:
        """What the network gives for rows of input_ids, labels and more."""
        trained = ops.cast(rows[1][:, 1:].reshape(-1) != IGNORED, ms.float32)
        place = ops.arange(0, trained.shape[0]).astype(ms.float32)
        _, places = self.first(trained * place.shape[0] - place, self.places.shape[0])  # trained ones, in their order
        return self.network(ops.depend(rows[0], ops.assign(self.places, places)), *rows[1:])


def put_on_trained_positions(job: TrainJob, network: nn.Cell, positions: int) -> nn.Cell:
    """Let the head and the loss of a network see so many positions, before it is compiled.

    Args:
        job: what is trained.
        network: takes input_ids and labels first; changed in place.
        positions: see most_trained.

    Returns:
        The network, or one around it where that is fewer than all.
    """
    if positions == positions_of(job):
        return network
    places = ms.Parameter(ms.Tensor(np.zeros(positions, np.int32)), name="trained_places", requires_grad=False)
    model = get_real_models(network)
    model.insert_child_to_cell("lm_head", TrainedHead(model.lm_head, places))  # plain assignment renames parameters
    model.insert_child_to_cell("loss", TrainedLoss(model.loss, places))
    return TrainedPositions(network, places)
