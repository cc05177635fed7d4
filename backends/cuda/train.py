"""The training loop of the cuda backend: rows in the front end's order, one loss normaliser."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.artifacts import refuse_used_folder
from twintune.backends.cuda.checkpoint import read_resumed, save
from twintune.backends.cuda.device import choose_device, choose_dtype
from twintune.backends.cuda.dropout import number_tokens
from twintune.backends.cuda.evaluation import evaluate
from twintune.backends.cuda.liger import put_on_liger
from twintune.backends.cuda.loss import require_plain_head, trained_tokens
from twintune.backends.cuda.model import (
    adapter_parameters,
    autocast,
    load_base,
    recompute_activations,
)
from twintune.backends.cuda.optimizer import make_optimizer
from twintune.backends.cuda.packed import choose_attention, set_attention
from twintune.backends.cuda.prefix import put_on_any_adapter
from twintune.backends.cuda.ranks import Sums
from twintune.backends.cuda.rows import MicroBatch, open_rows, read_micro_batches
from twintune.backends.cuda.sharding import shard_base
from twintune.backends.cuda.update import Update, WholeUpdate
from twintune.backends.job import Step, TrainJob, Watcher
from twintune.converters.adapter import read_any_adapter, write_adapter
from twintune.errors import UserError
from twintune.schedule import learning_rates


def train(job: TrainJob, watcher: Watcher) -> None:
    """Train the adapter of a job and write it to `job.output_dir / "adapter"`.

    Raises:
        UserError: for a model or adapter that does not fit, or a loss that is no longer finite.
    """
    adapter = job.output_dir / "adapter"
    refuse_used_folder(adapter)
    job = on_this_machine(job)
    sums = Sums(job.rank, job.device)
    watcher.status(f"loading {job.model}")
    model = load_for_training(job, sums)
    if job.packed:
        attention = choose_attention(job.device, job.dtype)
        watcher.status(f"attention of packed rows: {attention.value} ({attention.reason})")
        set_attention(model.get_base_model(), attention.value)
    update = make_update(job, model, sums)
    for step in optimizer_steps(job, update, sums):
        watcher.step(step)
        if step.step in job.snapshot_steps:
            _write(job, job.snapshot(step.step), update)
        if step.step in job.evaluation_steps:
            watcher.evaluated(evaluate(job, update.losses, step.step, sums))
        if step.step in job.checkpoint_steps:
            save(job, update, step.step)
            if job.rank.number == 0:
                watcher.saved(step.step)
    _write(job, adapter, update)


def _write(job: TrainJob, folder: Path, update: Update) -> None:
    tensors = update.adapter()
    if job.rank.number == 0:
        write_adapter(folder, tensors, job.adapter, str(job.model))


def on_this_machine(job: TrainJob) -> TrainJob:
    """The job with `auto` resolved. Raises UserError for a device or dtype that cannot be had."""
    device = choose_device(job.device).value
    return replace(job, device=device, dtype=choose_dtype(job.dtype, device).value)


def load_for_training(job: TrainJob, sums: Sums | None = None) -> Any:
    """The base model with the job's initial adapter on it; only the adapter has gradients.

    With `sums`, those that the ranks add up by, the base is sharded where the job asks for it; for DeepSpeed, which
    deals out all weights, it stays on the CPU.
    """
    _, tensors = read_any_adapter(job.initial_adapter, to_train=True)
    sharded = sums is not None and job.parallel.sharded
    base = load_base(job.model, "cpu" if sharded else job.device, job.dtype, job.quantization)
    if job.use_liger_kernel:
        put_on_liger(base)
    if job.gradient_checkpointing:
        recompute_activations(base)
    model = put_on_any_adapter(base, job.adapter, tensors, job.initial_adapter)
    if sums is not None and sharded and not job.parallel.zero_stage:
        model = shard_base(model, sums.ranks, job.device)
    with autocast(job.device, job.dtype):
        require_plain_head(model.eval())
    return model.train()


def make_update(job: TrainJob, model: Any, sums: Sums) -> Update:
    """How the job's ranks move the adapter, from its beginning or from `job.resume_from` on.

    Raises:
        UserError: for a checkpoint that is broken or of another adapter or optimizer.
    """
    state = read_resumed(job, model)
    optimizer = make_optimizer(job.optimizer, list(adapter_parameters(model).values()))
    update: Update
    if job.parallel.zero_stage:
        from twintune.backends.cuda.zero import ZeroUpdate  # of DeepSpeed, which few have

        update = ZeroUpdate(job, model, optimizer, sums)
    else:
        update = WholeUpdate(model, optimizer, job.optimizer.max_grad_norm, sums)
    if state is not None:
        update.put_state(state, str(job.resume_from))
    return update


def optimizer_steps(job: TrainJob, update: Update, sums: Sums) -> Iterator[Step]:
    """Train, giving each optimizer step after `job.steps_done` as it ends: the same on every rank.

    Raises:
        UserError: naming step and rows, if a loss or gradient is not finite or no token is trained; naming the rank
            that ended, if one has.
    """
    rows, order = open_rows(job.rows / "rows.arrow"), job.own_order
    rates, places = job_learning_rates(job), job.own_places
    batches = read_micro_batches(job, rows, order[job.steps_done : job.steps_done + 1])
    for number in range(job.steps_done, len(order)):
        began = time.perf_counter()
        tokens = int(sums.number(sum(trained_tokens(batch.rows) for batch in batches)))
        if tokens == 0:
            raise UserError(f"{_place(job, number)} must have a trained token, got all labels masked")
        with sums.naming_the_lost():
            row_losses = backward(job, update.losses, batches, tokens, places[number])
        batches = read_micro_batches(job, rows, order[number + 1 : number + 2])  # while a GPU is still computing
        loss = sums.number(float(row_losses.sum())) / tokens
        norm = update.step(float(rates[number]))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"{_place(job, number)} must have a finite loss and gradient, got loss {loss} and gradient "
                f"norm {norm}; lower train.learning_rate or look at these rows"
            )
        yield Step(number + 1, loss, norm, float(rates[number]), tokens, time.perf_counter() - began)


def job_learning_rates(job: TrainJob) -> NDArray[np.float64]:
    """The learning rate of every step of the job's schedule, float64 [max_steps]."""
    return learning_rates(job.schedule, job.optimizer.learning_rate)


def backward(job: TrainJob, losses: Any, batches: list[MicroBatch], tokens: int, places: NDArray[np.int64]) -> Any:
    """Accumulate gradients of the mean over the step's trained tokens.

    In float16 it is those of the sum that go back through the layers, as on ascend, and the adapter's float32 ones are
    divided at the end: a mean over many tokens has gradients below float16's smallest numbers.

    Args:
        job: what is trained.
        losses: a module that gives token_losses.
        batches: of the step, or this rank's share of it.
        tokens: trained ones in the whole step, those of other ranks too.
        places: of the rows in the whole run, which dropout depends on, int64 [accumulation, batch].

    Returns:
        Each row's own sum of losses, float64 [accumulation, batch].
    """
    row_losses = []
    later = float(tokens) if job.dtype == "float16" else 1.0
    for batch, first in zip(batches, places[:, 0].tolist(), strict=True):
        number_tokens(job, losses, batch.rows, first)
        with autocast(job.device, job.dtype):
            each = losses(*batch.inputs)
        (each.sum() / (tokens / later)).backward()
        by_row = each.detach().double().split([row.trained_tokens for row in batch.rows])
        row_losses.append(torch.stack([row.sum() for row in by_row]))
    if later > 1:
        for parameter in losses.parameters():
            if parameter.grad is not None:
                parameter.grad /= later
    return torch.stack(row_losses)


def _place(job: TrainJob, number: int) -> str:
    return f"{job.rows}: step {number + 1} (rows {', '.join(map(str, job.order[number].ravel()))})"
