"""The optimizers of the ascend backend by their formulas, as the generated configuration builds them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import Recorder, make_job
from twintune.backends import load_backend
from twintune.backends.ascend import runtime
from twintune.backends.ascend.profile import OPTIMIZERS, choose_optimizer, training_config
from twintune.backends.job import Lora, Optimizer, Schedule, TrainJob
from twintune.converters.adapter import read_adapter
from twintune.errors import UserError
from twintune.optimizers import update

runtime.import_quietly()

STEPS = 20
TOLERANCE = 3e-6  # relative, float32 against float64; MindSpore's betas are float32 too
SHAPE = (5, 3)
KINDS = (*OPTIMIZERS, "paged_adamw_32bit")
PAIRED = Lora(4, 8, 0.0, ("q_proj", "down_proj"))


def settings_of(optim: Any, weight_decay: float = 0.1) -> Optimizer:
    return Optimizer(1e-2, weight_decay, 0.9, 0.99, 1e-6, 1.0, optim, 0.9 if optim == "sgd" else 0.0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A job whose schedule only twintune has."""
    schedule = Schedule("polynomial", 2, STEPS, {"lr_end": 1e-4, "power": 2.0})
    return make_job(tmp_path_factory.mktemp("job"), steps=STEPS, layers=1, lora=PAIRED, schedule=schedule)


@pytest.mark.parametrize("optim", KINDS)
def test_updates_are_those_of_the_formula(job: TrainJob, optim: Any) -> None:
    import mindspore as ms
    from mindformers.core.lr import build_lr
    from mindformers.core.optim import build_optim

    from twintune.backends.ascend.keys import check_keys

    job = replace(job, optimizer=settings_of(optim))
    config = training_config(job, "cpu")
    for known in (config, training_config(job, "npu")):
        check_keys(known)  # and registers what is twintune's
    weight = np.random.default_rng(0).normal(size=SHAPE)
    moments: dict[str, Any] = {}
    decayed, bias = (ms.Parameter(ms.Tensor(weight, ms.float32), name=name) for name in ("weight", "bias"))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    rate = build_lr(dict(config["lr_schedule"]))
    optimizer = build_optim(config["optimizer"], default_args={"params": groups, "learning_rate": rate})
    without, none = weight, moments
    rates = load_backend("cuda").learning_rates(job)
    draw = np.random.default_rng(1)
    for number in range(STEPS):
        gradient = draw.normal(size=SHAPE)
        given = ms.Tensor(gradient, ms.float32)
        optimizer((given, given))
        weight, moments = update(job.optimizer, weight, gradient, moments, number + 1, rates[number])
        undecayed = replace(job.optimizer, weight_decay=0.0)
        without, none = update(undecayed, without, gradient, none, number + 1, rates[number])
    np.testing.assert_allclose(decayed.asnumpy(), weight, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(bias.asnumpy(), without, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(weight - without).max() > 1e-3


def test_training_equals_the_cuda_backend_and_a_resumed_run_the_unbroken_one(job: TrainJob) -> None:
    rate = 1e-3
    schedule = replace(job.schedule, max_steps=8, lr_scheduler_kwargs={"lr_end": 1e-5, "power": 2.0})
    optimizer = replace(settings_of("lion_32bit"), learning_rate=rate)
    job = replace(job, order=job.order[:8], schedule=schedule, optimizer=optimizer, checkpoint_steps=(4,))
    (ours, adapter), (theirs, expected) = (run(job, name, name) for name in ("ascend", "cuda"))
    np.testing.assert_allclose(series(ours), series(theirs), rtol=1e-4, atol=1e-6)
    # Lion moves a number by its whole rate either way: where rounding decides a sign, weights differ by as much.
    assert max(np.abs(adapter[name] - expected[name]).max() for name in adapter) < 2 * rate
    checkpoint = job.output_dir.with_name("ascend") / "checkpoint-4"
    resumed, after = run(replace(job, resume_from=checkpoint, steps_done=4), "ascend", "resumed")
    assert series(resumed) == series(ours)[4:]
    assert all(np.array_equal(after[name], adapter[name]) for name in adapter)


def run(job: TrainJob, backend: Any, name: str) -> tuple[Recorder, dict[str, Any]]:
    job = replace(job, output_dir=job.output_dir.with_name(name))
    job.output_dir.mkdir()
    recorder = Recorder()
    load_backend(backend).train(job, recorder)
    return recorder, read_adapter(job.output_dir / "adapter")[1]


def series(recorder: Recorder) -> list[tuple[float, float, float]]:
    return [(step.loss, step.grad_norm, step.learning_rate) for step in recorder.steps]


def test_an_npu_keeps_paged_moments_in_the_hosts_memory(tmp_path: Path) -> None:
    job = make_job(tmp_path, optimizer=settings_of("paged_adamw_32bit"))
    npu, cpu = (training_config(job, device)["optimizer"] for device in ("npu", "cpu"))
    assert npu == cpu | {"swap": True}
    assert "the host's memory" in choose_optimizer("paged_adamw_32bit", "npu").reason
    assert "the same numbers" in choose_optimizer("paged_adamw_32bit", "cpu").reason


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_moments_in_8_bits_are_refused(optim: Any) -> None:
    with pytest.raises(UserError, match=f"train.optim must keep its moments in 32 bits .* got '{optim}'"):
        load_backend("ascend").choose_optimizer(optim, "npu")
