"""Steps, row order and learning rates, by formula, once for both backends."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from twintune.backends import Schedule
from twintune.errors import UserError
from twintune.recipe import TrainSection

Steps = NDArray[np.float64]  # [max_steps]
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


def learning_rates(schedule: Schedule, learning_rate: float) -> NDArray[np.float64]:
    """The learning rate of each optimizer step, float64 [max_steps].

    As HF's get_scheduler has them, in which `constant` knows no warm-up. The factor of the peak rises from 0 at
    the first step to 1; then, with p the share of the remaining steps gone by and t the steps since the warm-up,

    - linear: 1 - p
    - cosine: (1 + cos(pi p)) / 2, in cosine_with_restarts of the fraction of num_cycles p
    - cosine_with_min_lr: m + (1 - m) (1 + cos(2 pi num_cycles p)) / 2, m being min_lr_rate
    - polynomial: e + (1 - e) (1 - p) ** power, e being lr_end over the peak
    - inverse_sqrt: 1 / sqrt(1 + t / timescale)

    warmup_stable_decay and cosine_warmup_with_min_lr have warm-ups of their own: see their functions.
    """
    numbers = dict(schedule.lr_scheduler_kwargs)
    if "min_lr" in numbers:
        numbers["min_lr_rate"] = numbers.pop("min_lr") / learning_rate
    if "lr_end" in numbers:
        numbers["lr_end"] /= learning_rate
    step = np.arange(schedule.max_steps, dtype=np.float64)
    return learning_rate * FACTORS[schedule.lr_scheduler_type](step, schedule, **numbers)


def _warmed_up(step: Steps, schedule: Schedule, after: Steps) -> Steps:
    """A warm-up from 0 at the first step, then `after`."""
    return np.where(step < schedule.warmup_steps, step / max(1, schedule.warmup_steps), after)


def _gone(step: Steps, schedule: Schedule) -> Steps:
    """The share of the steps after the warm-up that went by before each step."""
    share: Steps = np.clip((step - schedule.warmup_steps) / max(1, schedule.max_steps - schedule.warmup_steps), 0, 1)
    return share


def _wave(gone: Steps, num_cycles: float, lowest: float) -> Steps:
    """A cosine from 1, `num_cycles` waves long, between 1 and `lowest`."""
    return lowest + (1 - lowest) * (1 + np.cos(2 * np.pi * num_cycles * gone)) / 2


def _constant(step: Steps, schedule: Schedule) -> Steps:
    return np.ones_like(step)


def _constant_with_warmup(step: Steps, schedule: Schedule) -> Steps:
    return _warmed_up(step, schedule, np.ones_like(step))


def _linear(step: Steps, schedule: Schedule) -> Steps:
    return _warmed_up(step, schedule, 1 - _gone(step, schedule))


def _cosine(step: Steps, schedule: Schedule) -> Steps:
    return _warmed_up(step, schedule, _wave(_gone(step, schedule), 0.5, 0.0))


def _cosine_with_restarts(step: Steps, schedule: Schedule, num_cycles: int) -> Steps:
    return _warmed_up(step, schedule, _wave(num_cycles * _gone(step, schedule) % 1, 0.5, 0.0))


def _cosine_with_min_lr(step: Steps, schedule: Schedule, min_lr_rate: float, num_cycles: float) -> Steps:
    return _warmed_up(step, schedule, _wave(_gone(step, schedule), num_cycles, min_lr_rate))


def _cosine_warmup_with_min_lr(
    step: Steps, schedule: Schedule, min_lr_rate: float, num_cycles: float, warmup_lr_rate: float | None = None
) -> Steps:
    """One step ahead of cosine_with_min_lr; with warmup_lr_rate w the warm-up is linear from w to 1."""
    warmup = schedule.warmup_steps
    rising = (step + 1) / max(1, warmup)
    if warmup_lr_rate is not None:
        rising = warmup_lr_rate + (1 - warmup_lr_rate) * step / max(1, warmup - 1)
    gone = (step - warmup + 1) / max(1, schedule.max_steps - warmup)
    return np.where(step < warmup, rising, _wave(gone, num_cycles, min_lr_rate))


def _polynomial(step: Steps, schedule: Schedule, lr_end: float, power: float) -> Steps:
    return _warmed_up(step, schedule, lr_end + (1 - lr_end) * (1 - _gone(step, schedule)) ** power)


def _inverse_sqrt(step: Steps, schedule: Schedule, timescale: int | None = None) -> Steps:
    scale = timescale or schedule.warmup_steps or 10_000
    return _warmed_up(step, schedule, 1 / np.sqrt(1 + np.maximum(step - schedule.warmup_steps, 0) / scale))


def _warmup_stable_decay(
    step: Steps,
    schedule: Schedule,
    num_decay_steps: int,
    warmup_type: str,
    decay_type: str,
    min_lr_ratio: float,
    num_cycles: float,
    num_stable_steps: int | None = None,
) -> Steps:
    """Rise, 1, fall and min_lr_ratio, each a curve of p from 0 to 1 between min_lr_ratio and 1.

    Curves of the rise: p, (1 - cos(pi p)) / 2, 1 - sqrt(1 - p); of the fall: 1 - p, a cosine, 1 - sqrt(p).
    """
    warmup = schedule.warmup_steps
    if num_stable_steps is None:
        num_stable_steps = schedule.max_steps - warmup - num_decay_steps
    risen = np.clip(step / max(1, warmup), 0, 1)
    fallen = np.clip((step - warmup - num_stable_steps) / num_decay_steps, 0, 1)
    rise = {"linear": risen, "cosine": _wave(1 - risen, 0.5, 0.0), "1-sqrt": 1 - np.sqrt(1 - risen)}[warmup_type]
    fall = {"linear": 1 - fallen, "cosine": _wave(fallen, num_cycles, 0.0), "1-sqrt": 1 - np.sqrt(fallen)}[decay_type]
    curve = np.where(step < warmup, rise, np.where(fallen < 1, fall, 0))
    return min_lr_ratio + (1 - min_lr_ratio) * curve


FACTORS: dict[str, Callable[..., Steps]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
}
