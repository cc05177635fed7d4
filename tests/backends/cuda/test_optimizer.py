"""The optimizers by their formulas, and what a checkpoint keeps of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda backend's framework")

from tests.jobs import Recorder, make_job
from twintune.backends.cuda import CudaBackend
from twintune.backends.cuda.optimizer import (
    CLASSES,
    choose_optimizer,
    make_optimizer,
    optimizer_state,
    put_in_state,
    set_learning_rate,
)
from twintune.backends.job import Lora, Optimizer, TrainJob
from twintune.converters.adapter import read_adapter
from twintune.converters.training_state import TrainingState
from twintune.errors import UserError
from twintune.optimizers import update

STEPS = 20
TOLERANCE = 1e-6  # relative, float32 against float64
SHAPE = (96, 64)  # above 4,096 numbers bitsandbytes keeps moments in 8 bits


def settings_of(optim: Any, weight_decay: float = 0.1) -> Optimizer:
    momentum = 0.9 if optim == "sgd" else 0.0
    return Optimizer(1e-2, weight_decay, 0.9, 0.99, 1e-6, 1.0, optim, momentum)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """Six steps on a LoRA whose largest matrix has the 4,096 numbers from which on bitsandbytes takes 8 bits."""
    return make_job(tmp_path_factory.mktemp("job"), steps=6, lora=Lora(64, 8, 0.1, ("q_proj", "down_proj")))


def gradients(seed: int) -> list[Any]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=SHAPE) for _ in range(STEPS)]


def start() -> Any:
    return np.random.default_rng(0).normal(size=SHAPE)


def trained(optim: Any, weight_decay: float = 0.1) -> tuple[Any, Any]:
    """The optimizer and its parameter after STEPS steps of falling rate."""
    parameter = torch.nn.Parameter(torch.tensor(start(), dtype=torch.float32))
    optimizer = make_optimizer(settings_of(optim, weight_decay), [parameter])
    for number, gradient in enumerate(gradients(1), 1):
        take(optimizer, parameter, gradient, number)
    return optimizer, parameter


def take(optimizer: Any, parameter: Any, gradient: Any, number: int) -> None:
    parameter.grad = torch.tensor(gradient, dtype=torch.float32)
    optimizer.param_groups[0]["lr"] = 1e-2 / number
    optimizer.step()
    optimizer.zero_grad()


def by_formula(optim: Any, weight_decay: float) -> Any:
    weight = start()
    moments: dict[str, Any] = {}
    for number, gradient in enumerate(gradients(1), 1):
        weight, moments = update(settings_of(optim, weight_decay), weight, gradient, moments, number, 1e-2 / number)
    return weight


@pytest.mark.parametrize("optim", CLASSES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_the_formula(optim: str, weight_decay: float) -> None:
    _, parameter = trained(optim, weight_decay)
    # 8-bit moments have 256 values in a block: an update is then a few percent off.
    tolerance = 2e-2 if "8bit" in optim else TOLERANCE
    expected = by_formula(optim, weight_decay)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=TOLERANCE, atol=tolerance)
    assert np.abs(expected - start()).max() > 0.02


def test_optimizers_differ() -> None:
    """Each formula gives weights of its own, so that none could stand in for another."""
    kinds = ("adamw_torch", "adam_weight_decay", "sgd", "lion_32bit")
    weights = [by_formula(optim, 0.1) for optim in kinds]
    for first in range(len(kinds)):
        for second in range(first):
            assert np.abs(weights[first] - weights[second]).max() > 1e-3, (kinds[first], kinds[second])


@pytest.mark.parametrize("optim", CLASSES)
def test_a_state_put_into_a_new_optimizer_goes_on_bit_by_bit(optim: str) -> None:
    optimizer, parameter = trained(optim)
    state = TrainingState(STEPS, "cuda", optimizer_state(optimizer, {"weight": parameter}))
    copy = torch.nn.Parameter(parameter.detach().clone())
    other = make_optimizer(settings_of(optim), [copy])
    put_in_state(other, {"weight": copy}, state, "checkpoint")
    assert torch.equal(copy, parameter), "no weight may move"
    assert other.param_groups[0]["lr"] == 1e-2
    assert copy.grad is None
    for number, gradient in enumerate(gradients(2), STEPS + 1):
        take(optimizer, parameter, gradient, number)
        take(other, copy, gradient, number)
    assert torch.equal(copy, parameter)


@pytest.mark.parametrize("optim", CLASSES)
def test_a_resumed_run_equals_the_unbroken_one(job: TrainJob, optim: Any) -> None:
    job = replace(job, optimizer=settings_of(optim), checkpoint_steps=(3,))
    whole, adapter = run(job, f"{optim}-whole")
    checkpoint = job.output_dir.with_name(f"{optim}-whole") / "checkpoint-3"
    resumed, after = run(replace(job, resume_from=checkpoint, steps_done=3), f"{optim}-resumed")
    assert resumed == whole[3:]
    assert all(np.array_equal(after[name], adapter[name]) for name in adapter)


def run(job: TrainJob, name: str) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    job = replace(job, output_dir=job.output_dir.with_name(name))
    job.output_dir.mkdir()
    recorder = Recorder()
    CudaBackend().train(job, recorder)
    return [(step.loss, step.grad_norm) for step in recorder.steps], read_adapter(job.output_dir / "adapter")[1]


def test_a_state_of_another_optimizer_is_refused() -> None:
    optimizer, parameter = trained("sgd")
    state = TrainingState(STEPS, "cuda", optimizer_state(optimizer, {"weight": parameter}))
    other = make_optimizer(settings_of("adamw_torch"), [parameter])
    with pytest.raises(UserError) as caught:
        put_in_state(other, {"weight": parameter}, state, "checkpoint-20")
    assert sorted(caught.value.messages) == [
        "checkpoint-20: the checkpoint must have the moments of train.optim, got momentum_buffer.weight besides",
        "checkpoint-20: the checkpoint must have the moments of train.optim, got no exp_avg.weight",
        "checkpoint-20: the checkpoint must have the moments of train.optim, got no exp_avg_sq.weight",
    ]


def test_sgd_without_momentum_keeps_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(Optimizer(0.5, 0.0, 0.9, 0.99, 1e-6, 1.0, "sgd"), [parameter])
    put_in_state(optimizer, {"weight": parameter}, TrainingState(1, "cuda", {}), "checkpoint")
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert parameter.tolist() == [0.5, 0.5, 0.5]
    assert optimizer_state(optimizer, {"weight": parameter}) == {}


def test_moments_have_torchs_names() -> None:
    optimizer, parameter = trained("lion_32bit")
    assert list(optimizer_state(optimizer, {"weight": parameter})) == ["exp_avg.weight"]


def test_paged_optimizers_say_what_a_cpu_does() -> None:
    choice = choose_optimizer("paged_adamw_32bit", "cpu")
    assert choice.value == "torch.optim.AdamW"
    assert "whose pages only a GPU has" in choice.reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pages are a GPU's")
@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_pages_stay_pages_after_a_resume(optim: Any) -> None:
    parameter = torch.nn.Parameter(torch.zeros(512, 512, device="cuda"))  # bitsandbytes pages from 1e5 numbers on
    optimizer = make_optimizer(settings_of(optim), [parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = TrainingState(1, "cuda", optimizer_state(optimizer, {"weight": parameter}))
    put_in_state(optimizer, {"weight": parameter}, state, "checkpoint")
    assert optimizer.state[parameter]["state1"].is_paged


@pytest.mark.parametrize("optim", ["adamw_torch", "adam_weight_decay", "sgd", "lion_32bit"])
def test_matrices_decay_and_a_bias_does_not(optim: str) -> None:
    matrix, bias = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,)))
    optimizer = make_optimizer(settings_of(optim), [matrix, bias])
    set_learning_rate(optimizer, 0.5)
    matrix.grad, bias.grad = torch.zeros_like(matrix), torch.zeros_like(bias)
    optimizer.step()
    torch.testing.assert_close(matrix, torch.full_like(matrix, 0.95))  # 1 - rate * weight_decay
    assert (bias == 1).all()
