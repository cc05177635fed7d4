"""The learning rates that MindFormers follows are those of the front end's formula."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import make_job
from tests.schedules import PEAK, SCHEDULES, STEPS
from twintune.backends import load_backend
from twintune.backends.ascend import profile
from twintune.backends.job import Optimizer, Schedule, TrainJob
from twintune.errors import UserError
from twintune.schedule import learning_rates
from twintune.schedule_settings import schedule_settings

OURS = [(kind, numbers) for kind, numbers in SCHEDULES if kind not in profile.SCHEDULES]


def job_with(folder: Path, kind: Any, numbers: dict[str, Any], **changes: Any) -> TrainJob:
    schedule = Schedule(kind, 4, STEPS, schedule_settings(kind, numbers, PEAK))
    return make_job(folder, schedule=schedule, optimizer=Optimizer(PEAK, 0.0, 0.9, 0.999, 1e-8, 1.0), **changes)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return job_with(tmp_path_factory.mktemp("job"), "cosine", {})


@pytest.mark.parametrize(("kind", "numbers"), OURS)
def test_tables_hold_the_formula_in_float32(job: TrainJob, kind: Any, numbers: dict[str, Any]) -> None:
    schedule = Schedule(kind, 4, STEPS, schedule_settings(kind, numbers, PEAK))
    rates = load_backend("ascend").learning_rates(replace(job, schedule=schedule))
    np.testing.assert_allclose(rates, learning_rates(schedule, PEAK), rtol=1e-7, atol=1e-12)


def test_the_last_rate_holds_after_the_last_step(job: TrainJob) -> None:
    """MindFormers asks once more after it."""
    import mindspore as ms

    from twintune.backends.ascend.schedule import TwintuneLR

    table = TwintuneLR(PEAK, "linear", 0, 4, {})
    last = [float(table(ms.Tensor([step], ms.int32)).asnumpy()[0]) for step in (3, 4)]
    assert last == pytest.approx([PEAK / 4] * 2, rel=1e-7)


def test_the_configuration_says_what_makes_the_table(tmp_path: Path) -> None:
    config = profile.training_config(job_with(tmp_path, "polynomial", {"power": 2.0}), "npu")["lr_schedule"]
    assert config == {
        "type": "TwintuneLR",
        "learning_rate": PEAK,
        "warmup_steps": 4,
        "total_steps": STEPS,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"lr_end": 1e-7, "power": 2.0},
    }


def test_its_numbers_are_the_recipes(tmp_path: Path) -> None:
    overrides = {"lr_schedule": {"lr_scheduler_kwargs": {"powr": 2.0}}}
    with pytest.raises(UserError, match=r"must be left to the recipe, got .*train\.lr_scheduler_kwargs"):
        load_backend("ascend").plan(job_with(tmp_path, "polynomial", {}, overrides=overrides))
