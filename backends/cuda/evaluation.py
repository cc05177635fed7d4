"""The loss on the validation rows while a run goes on."""

import math
import time
from typing import Any

import torch

from twintune.backends.cuda.loss import trained_tokens
from twintune.backends.cuda.model import autocast
from twintune.backends.cuda.ranks import Sums
from twintune.backends.cuda.rows import model_inputs, open_rows, read_row
from twintune.backends.job import Evaluation, TrainJob


def evaluate(job: TrainJob, losses: Any, step: int, sums: Sums) -> Evaluation:
    """The mean loss over the trained tokens of validation.arrow, without dropout; each rank takes a share of its rows.

    Args:
        job: what is trained.
        losses: a module that gives token_losses.
        step: after which this is.
        sums: what the ranks add up by.

    Raises:
        UserError: if there is no such file, or no token in it is trained.
    """
    began = time.perf_counter()
    table = open_rows(job.rows / "validation.arrow")
    losses.eval()
    total, tokens = 0.0, 0
    own = range(job.rank.number, len(table), job.rank.world_size)
    rounds = math.ceil(len(table) / (job.rank.world_size * job.evaluation_batch))
    for first in range(0, rounds * job.evaluation_batch, job.evaluation_batch):
        batch = [read_row(table, number) for number in own[first : first + job.evaluation_batch]]
        tokens += trained_tokens(batch)
        # A sharded base is gathered by all ranks at once: one whose rows have ended takes the first row for nothing.
        inputs = model_inputs(job, batch or [read_row(table, 0)])
        with torch.no_grad(), autocast(job.device, job.dtype):  # what FSDP gathers in inference mode trains no more
            each = losses(*inputs)
        total += float(each.double().sum()) if batch else 0.0
    losses.train()
    total, tokens = sums.number(total), int(sums.number(tokens))
    return Evaluation(step, total / tokens, tokens, time.perf_counter() - began)
