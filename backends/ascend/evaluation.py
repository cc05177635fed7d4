"""The loss on the validation rows while MindFormers' Trainer trains."""

import time

import mindspore as ms
import numpy as np
from mindspore import nn

from twintune.backends.ascend.data import evaluation_batches
from twintune.backends.ascend.dropout import FormulaDropout
from twintune.backends.ascend.profile import compiled_length, packed_borders
from twintune.backends.ascend.ranks import together
from twintune.backends.ascend.trained_positions import TrainedHead, TrainedLoss
from twintune.backends.job import Evaluation, TrainJob


class EvaluationLoss(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Loss sum and trained tokens of rows, without dropout and without gradients: a graph of its own.

    MindFormers' network gives logits in place of the loss where it is not in training mode. So only those cells leave
    that mode that compute otherwise while training, when this graph is compiled by its first call.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *rows: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """As the network gives them, scalars."""
        losses, tokens = self.network(*rows)
        return losses, tokens


class Evaluator:
    """Evaluates the validation rows of a job as often as asked; the graph is compiled once.

    Args:
        job: what is trained.
        network: the one that the step cell trains, which gives loss sum and trained tokens.
    """

    def __init__(self, job: TrainJob, network: nn.Cell) -> None:
        self._job = job
        self._loss = EvaluationLoss(network)
        apart = FormulaDropout | TrainedHead | TrainedLoss
        self._apart = [cell for _, cell in network.cells_and_names() if isinstance(cell, apart)]

    def evaluate(self, step: int) -> Evaluation:
        """The mean loss over the trained tokens of validation.mindrecord."""
        began = time.perf_counter()
        job = self._job
        batches = evaluation_batches(
            job.rows / "validation.mindrecord",
            job.evaluation_batch,
            compiled_length(job.row_length),
            job.pad_token_id,
            packed_borders(job, job.device).value if job.packed else None,
            job.rank,
        )
        self._set_training(False)
        sums = [[value.asnumpy().item() for value in self._loss(*map(ms.Tensor, rows))] for rows in batches]
        self._set_training(True)
        own = np.reshape(sums, (-1, 2)).sum(axis=0)  # a rank may have no row
        loss, tokens = np.sum([said["sums"] for said in together(job.rank).exchange({"sums": own.tolist()})], axis=0)
        return Evaluation(step, loss / tokens, int(tokens), time.perf_counter() - began)

    def _set_training(self, training: bool) -> None:
        for cell in self._apart:
            cell.add_flags(training=training)
