import math
from typing import Any, get_args

import numpy as np
import pytest

from tests.schedules import PEAK, SCHEDULES, STEPS
from twintune.backends import missing_packages
from twintune.backends.job import Schedule, ScheduleName
from twintune.errors import UserError
from twintune.recipe_sections import TrainSection
from twintune.schedule import (
    checkpoint_steps,
    evaluation_steps,
    learning_rates,
    make_schedule,
    row_order,
    schedule_words,
    step_count,
    warmup_steps,
)
from twintune.schedule_factors import FACTORS
from twintune.schedule_settings import SETTINGS, schedule_settings

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="compares with torch and transformers")


@needs_torch
@pytest.mark.parametrize(("kind", "numbers"), SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 4, 15])
def test_learning_rates_are_those_of_transformers(kind: Any, numbers: dict[str, Any], warmup: int) -> None:
    import torch
    from transformers import get_inverse_sqrt_schedule, get_scheduler

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    if kind == "inverse_sqrt":  # get_scheduler drops its timescale
        scheduler = get_inverse_sqrt_schedule(optimizer, warmup, **numbers)
    else:
        steps = None if "num_stable_steps" in numbers else STEPS  # it warns of both
        scheduler = get_scheduler(kind, optimizer, warmup, steps, numbers)
    expected = []
    for _ in range(STEPS):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    got = learning_rates(Schedule(kind, warmup, STEPS, schedule_settings(kind, numbers, PEAK)), PEAK)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-20)  # a last rate may be 0 but for rounding


def test_every_schedule_is_compared_and_has_its_numbers_in_words() -> None:
    assert {kind for kind, _ in SCHEDULES} == set(get_args(ScheduleName)) == set(FACTORS)
    assert set(SETTINGS) < set(FACTORS)
    assert schedule_words(Schedule("cosine", 0, 9)) == "cosine"
    assert schedule_words(Schedule("polynomial", 0, 9, {"lr_end": 1e-7, "power": 2.0})) == (
        "polynomial (lr_end 1e-07, power 2.0)"
    )


def test_a_decay_longer_than_the_run_is_refused() -> None:
    numbers = {"num_decay_steps": 7, "num_stable_steps": 1}
    train = TrainSection(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=numbers, warmup_ratio=0.25)
    assert make_schedule(train, 12) == Schedule("warmup_stable_decay", 3, 12, train.lr_scheduler_kwargs)
    with pytest.raises(UserError, match="and 3 warm-up steps must be at most the run's 10 steps, got 11; lower one"):
        make_schedule(train, 10)


@needs_torch
@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 10), (0.03, 10), (0.1, 10), (0.5, 7), (0.07, 100), (0.999, 3)])
def test_warmup_steps_are_rounded_up_as_the_trainer_of_transformers_does(
    ratio: float, steps: int, tmp_path: Any
) -> None:
    import transformers

    train = TrainSection(warmup_ratio=ratio)
    # transformers 5 takes a ratio under the name of the steps
    key = "warmup_steps" if int(transformers.__version__.split(".")[0]) >= 5 else "warmup_ratio"
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **{key: ratio})
    assert warmup_steps(train, steps) == arguments.get_warmup_steps(steps) == math.ceil(ratio * steps)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(10, 2, 1, 1, 5), (10, 3, 1, 1, 4), (10, 2, 3, 3, 5), (10, 4, 1, 0.5, 2), (3, 8, 2, 1, 1)],
)
def test_steps_fill_the_epochs(rows: int, batch: int, accumulation: int, epochs: float, steps: int) -> None:
    train = TrainSection(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=epochs
    )
    assert step_count(train, rows) == steps == math.ceil(epochs * rows / (batch * accumulation))


def test_max_steps_replaces_the_epochs() -> None:
    assert step_count(TrainSection(max_steps=7, num_train_epochs=99), rows=1000) == 7
    assert step_count(TrainSection(max_steps=-1, num_train_epochs=1), rows=1000) == 500


@pytest.mark.parametrize(("rows", "batch", "accumulation"), [(10, 2, 1), (7, 3, 2), (2, 5, 3)])
def test_every_epoch_is_a_permutation_and_every_batch_is_full(rows: int, batch: int, accumulation: int) -> None:
    train = TrainSection(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=4
    )
    order = row_order(rows, train)
    assert order.shape == (step_count(train, rows), accumulation, batch)
    assert order.dtype == np.int64
    stream = order.ravel()
    epochs = [stream[start : start + rows] for start in range(0, len(stream) - rows + 1, rows)]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)


def test_the_seed_decides_the_order() -> None:
    one, same, other = (row_order(50, TrainSection(max_steps=60, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    first, second = one.ravel()[:50], one.ravel()[50:100]
    assert not np.array_equal(first, second)


def test_more_steps_keep_the_order_of_the_first() -> None:
    short, long = (row_order(9, TrainSection(max_steps=steps)) for steps in (3, 11))
    assert np.array_equal(long[:3], short)


def padding(order: Any, lengths: Any) -> float:
    """The share of positions that are padding if every micro-batch is padded to its longest row."""
    batches = lengths[order.reshape(-1, order.shape[-1])]
    return float(1 - batches.sum() / (batches.max(axis=1) * batches.shape[1]).sum())


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_rows_of_like_length_share_a_batch(rows: int) -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, rows)
    train = TrainSection(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3)
    order = row_order(rows, train, lengths)
    assert order.shape == row_order(rows, train).shape
    stream = order.ravel()
    epochs = [stream[start : start + rows] for start in range(0, len(stream) - rows + 1, rows)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    if rows == 1000:
        assert padding(row_order(rows, train), lengths) > 0.3
        assert padding(order, lengths) < 0.05


def test_grouping_by_length_still_mixes_the_rows() -> None:
    lengths = np.repeat(np.arange(10, 30), 50)
    train = TrainSection(per_device_train_batch_size=2, num_train_epochs=2)
    one, same = (row_order(1000, train, lengths) for _ in range(2))
    assert np.array_equal(one, same)
    first, second = one.ravel()[:1000], one.ravel()[1000:]
    assert not np.array_equal(first, second)
    longest = lengths[first.reshape(10, 100)].max(axis=1)  # 50 steps of 2 rows are sorted together
    assert len(set(longest)) <= 3, "every stretch has long rows: sorted as a whole they would come all at once"
    assert not np.array_equal(row_order(1000, TrainSection(seed=7, num_train_epochs=2), lengths), one)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ()),
        ({"save_steps": 3}, (3, 6, 9, 10)),
        ({"save_steps": 5}, (5, 10)),
        ({"save_steps": 100}, (10,)),
        ({"saves_per_epoch": 1}, (4, 8, 10)),  # an epoch is 4 steps
        ({"saves_per_epoch": 2}, (2, 4, 6, 8, 10)),
        ({"saves_per_epoch": 3}, (1, 3, 4, 5, 7, 8, 9, 10)),
        ({"saves_per_epoch": 50}, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
    ],
)
def test_checkpoints_come_in_their_rhythm_and_at_the_end(settings: dict[str, int], expected: tuple[int, ...]) -> None:
    train = TrainSection(per_device_train_batch_size=2, max_steps=10, **settings)
    assert checkpoint_steps(train, rows=8) == expected


def test_evaluation_twice_an_epoch_of_uneven_length() -> None:
    train = TrainSection(per_device_train_batch_size=2, num_train_epochs=2, evals_per_epoch=2)
    assert evaluation_steps(train, rows=9) == (2, 4, 7, 9)  # 2.25, 4.5, 6.75 and 9 steps
