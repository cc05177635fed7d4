"""Steps, row order and learning rates, by formula, once for both backends."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Schedule
from twintune.errors import UserError
from twintune.recipe_sections import TrainSection
from twintune.schedule_factors import FACTORS

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


def evaluation_steps(train: TrainSection, rows: int) -> tuple[int, ...]:
    """The steps after which the validation rows are evaluated; none where the recipe does not ask for it."""
    return _rhythm(train, rows, train.eval_steps, train.evals_per_epoch)


def checkpoint_steps(train: TrainSection, rows: int) -> tuple[int, ...]:
    """The steps after which a checkpoint is written; none where the recipe does not ask for it."""
    return _rhythm(train, rows, train.save_steps, train.saves_per_epoch)


def _rhythm(train: TrainSection, rows: int, every: int | None, per_epoch: int | None) -> tuple[int, ...]:
    """Every so many steps, or equal parts of an epoch rounded to whole steps, and the last step in any case."""
    if every is None and per_epoch is None:
        return ()
    steps = step_count(train, rows)
    if every is None:
        rows_per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
        part = rows / rows_per_step / (per_epoch or 1)
        times = math.floor(steps / part)
        reached = {max(1, round(part * number)) for number in range(1, times + 1)}
    else:
        reached = set(range(every, steps + 1, every))
    return tuple(sorted({step for step in reached if step < steps} | {steps}))


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


def make_schedule(train: TrainSection, steps: int) -> Schedule:
    """The schedule of a run of so many steps.

    Raises:
        UserError: for a warm-up and a decay that together are longer than the run.
    """
    schedule = Schedule(train.lr_scheduler_type, warmup_steps(train, steps), steps, train.lr_scheduler_kwargs)
    stages = ("num_stable_steps", "num_decay_steps")
    together = schedule.warmup_steps + sum(schedule.lr_scheduler_kwargs.get(stage, 0) for stage in stages)
    if "num_decay_steps" in schedule.lr_scheduler_kwargs and together > steps:
        raise UserError(
            f"recipe: train.lr_scheduler_kwargs: num_decay_steps, num_stable_steps and {schedule.warmup_steps} warm-up "
            f"steps must be at most the run's {steps} steps, got {together}; lower one of them"
        )
    return schedule


def schedule_words(schedule: Schedule) -> str:
    """A schedule's type and its numbers, for people."""
    numbers = ", ".join(f"{name} {value}" for name, value in schedule.lr_scheduler_kwargs.items())
    return f"{schedule.lr_scheduler_type} ({numbers})" if numbers else schedule.lr_scheduler_type


def learning_rates(schedule: Schedule, learning_rate: float) -> NDArray[np.float64]:
    """The learning rate of each optimizer step, float64 [max_steps].

    As HF's get_scheduler has them, in which `constant` knows no warm-up: the peak times a factor that rises from 0
    at the first step to 1, and goes on as schedule_factors has it by type.
    """
    numbers = dict(schedule.lr_scheduler_kwargs)
    if "min_lr" in numbers:
        numbers["min_lr_rate"] = numbers.pop("min_lr") / learning_rate
    if "lr_end" in numbers:
        numbers["lr_end"] /= learning_rate
    step = np.arange(schedule.max_steps, dtype=np.float64)
    return learning_rate * FACTORS[schedule.lr_scheduler_type](step, schedule, **numbers)
