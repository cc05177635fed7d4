"""The share of the peak learning rate at each step, one formula for each lr_scheduler_type.

Formulas are those of transformers.get_scheduler. Each takes the steps done before, float64 [max_steps], the schedule,
and the numbers of its type: see twintune.schedule_settings. In what follows p is the share of the steps after the
warm-up that went by, from 0 to 1, and t their count.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Schedule

Steps = NDArray[np.float64]  # [max_steps]


def _warmed_up(step: Steps, schedule: Schedule, after: Steps) -> Steps:
    """A warm-up from 0 at the first step, then `after`."""
    risen: Steps = step / max(1, schedule.warmup_steps)
    return np.where(step < schedule.warmup_steps, risen, after)


def _gone(step: Steps, schedule: Schedule) -> Steps:
    """The share of the steps after the warm-up that went by before each step."""
    share: Steps = np.clip((step - schedule.warmup_steps) / max(1, schedule.max_steps - schedule.warmup_steps), 0, 1)
    return share


def _wave(gone: Steps, num_cycles: float, lowest: float) -> Steps:
    """A cosine from 1, `num_cycles` waves long, between 1 and `lowest`."""
    wave: Steps = lowest + (1 - lowest) * (1 + np.cos(2 * np.pi * num_cycles * gone)) / 2
    return wave


def _constant(step: Steps, schedule: Schedule) -> Steps:
    return np.ones_like(step)


def _constant_with_warmup(step: Steps, schedule: Schedule) -> Steps:
    return _warmed_up(step, schedule, np.ones_like(step))


def _linear(step: Steps, schedule: Schedule) -> Steps:
    """1 - p."""
    return _warmed_up(step, schedule, 1 - _gone(step, schedule))


def _cosine(step: Steps, schedule: Schedule) -> Steps:
    """(1 + cos(pi p)) / 2."""
    return _warmed_up(step, schedule, _wave(_gone(step, schedule), 0.5, 0.0))


def _cosine_with_restarts(step: Steps, schedule: Schedule, num_cycles: int) -> Steps:
    """The cosine of the fraction of num_cycles p."""
    return _warmed_up(step, schedule, _wave(num_cycles * _gone(step, schedule) % 1, 0.5, 0.0))


def _cosine_with_min_lr(step: Steps, schedule: Schedule, min_lr_rate: float, num_cycles: float) -> Steps:
    """M + (1 - m) (1 + cos(2 pi num_cycles p)) / 2, m being min_lr_rate."""
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
    """E + (1 - e) (1 - p) ** power, e being lr_end as a share of the peak."""
    return _warmed_up(step, schedule, lr_end + (1 - lr_end) * (1 - _gone(step, schedule)) ** power)


def _inverse_sqrt(step: Steps, schedule: Schedule, timescale: int | None = None) -> Steps:
    """1 / sqrt(1 + t / timescale)."""
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
    risen: Steps = np.clip(step / max(1, warmup), 0, 1)
    fallen: Steps = np.clip((step - warmup - num_stable_steps) / num_decay_steps, 0, 1)
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
