"""Steps, row order and learning rates, by formula, once for both backends."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Schedule
from twintune.recipe import TrainSection

MOST_STEPS_SORTED = 50  # optimizer steps whose rows are sorted together, as HF's LengthGroupedSampler has it


def step_count(train: TrainSection, rows: int) -> int:
    """Optimizer steps of a run: `max_steps`, or as many as `num_train_epochs` over the rows fill.

    The last step is filled up with rows of the next epoch (see row_order), so nothing is dropped.
    """
    if train.max_steps > 0:
        return train.max_steps
    rows_per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return math.ceil(train.num_train_epochs * rows / rows_per_step)


def warmup_steps(train: TrainSection, steps: int) -> int:
    """Warm-up steps, the ratio's rounded up as HF's Trainer does (MindFormers would truncate)."""
    return train.warmup_steps or math.ceil(train.warmup_ratio * steps)


def row_order(
    rows: int, train: TrainSection, lengths: Sequence[int] | NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The row numbers in the order of training, int64 [max_steps, accumulation, batch].

    Each epoch is a permutation drawn from (seed, epoch); epochs follow each other without a gap, so
    that every micro-batch is full and a fixed-shape graph needs no filler.

    Args:
        rows: how many there are.
        train: batch, steps and seed.
        lengths: tokens of each row for train.group_by_length: rows of like length then share a batch.
    """
    shape = (step_count(train, rows), train.gradient_accumulation_steps, train.per_device_train_batch_size)
    epochs = math.ceil(math.prod(shape) / rows)
    drawn = [np.random.default_rng((train.seed, epoch)).permutation(rows) for epoch in range(epochs)]
    if lengths is not None:
        drawn = [_grouped(epoch, np.asarray(lengths), math.prod(shape[1:])) for epoch in drawn]
    order: NDArray[np.int64] = np.concatenate(drawn)[: math.prod(shape)].reshape(shape)
    return order


def _grouped(permutation: NDArray[np.int64], lengths: NDArray[np.int64], rows_per_step: int) -> NDArray[np.int64]:
    """Sort stretches of a permutation, longest rows first: MOST_STEPS_SORTED steps each, or a quarter of the rows."""
    steps = min(MOST_STEPS_SORTED, max(1, len(permutation) // (4 * rows_per_step)))
    borders = range(steps * rows_per_step, len(permutation), steps * rows_per_step)
    stretches = np.split(permutation, borders)
    return np.concatenate([stretch[np.argsort(-lengths[stretch], kind="stable")] for stretch in stretches])


def learning_rates(schedule: Schedule, learning_rate: float) -> NDArray[np.float64]:
    """The learning rate of each optimizer step, float64 [max_steps].

    Warm-up rises from 0 at the first step; then, with p the share of the remaining steps gone by,
    linear: 1 - p; cosine: (1 + cos(pi p)) / 2; constant kinds: 1. As HF's get_scheduler, in which
    `constant` knows no warm-up.
    """
    step = np.arange(schedule.max_steps, dtype=np.float64)
    if schedule.lr_scheduler_type == "constant":
        return np.full(schedule.max_steps, learning_rate)
    warmup = schedule.warmup_steps
    gone = np.clip((step - warmup) / max(1, schedule.max_steps - warmup), 0, 1)
    falling = {
        "linear": 1 - gone,
        "cosine": (1 + np.cos(np.pi * gone)) / 2,
        "constant_with_warmup": np.ones_like(gone),
    }[schedule.lr_scheduler_type]
    return learning_rate * np.where(step < warmup, step / max(1, warmup), falling)
