"""The optimizers of the cuda backend: torch's, bitsandbytes', and MindSpore's AdamWeightDecay, which neither has."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends import Choice
from twintune.backends.job import Optimizer, OptimizerName
from twintune.backends.matching import check_matrices
from twintune.converters.training_state import TrainingState

CLASSES: dict[OptimizerName, str] = {
    "adamw_torch": "torch.optim.AdamW",
    "adam_weight_decay": "twintune.backends.cuda.optimizer.AdamWeightDecay",
    "sgd": "torch.optim.SGD",
    "lion_32bit": "bitsandbytes.optim.Lion32bit",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw_32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
}
UNPAGED: dict[OptimizerName, OptimizerName] = {"paged_adamw_32bit": "adamw_torch", "paged_adamw_8bit": "adamw_8bit"}
TORCH_NAMES = {"state1": "exp_avg", "state2": "exp_avg_sq"}  # of bitsandbytes' moments
NOT_KEPT = ("step", "qmap1", "qmap2")  # the step is the run's; bitsandbytes' code books are constants


def choose_optimizer(asked: OptimizerName, device: str) -> Choice:
    """The class that does what `train.optim` asks on a device, with its module."""
    if asked in UNPAGED and device != "cuda":
        return Choice(CLASSES[UNPAGED[asked]], f"{asked}, whose pages only a GPU has: the same numbers without them")
    return Choice(CLASSES[asked], asked)


def make_optimizer(settings: Optimizer, parameters: list[Any]) -> Any:
    """The optimizer that the settings describe, over float32 parameters of one device.

    Only matrices decay, no bias: as MindFormers groups them, and transformers' Trainer.
    """
    module, _, name = choose_optimizer(settings.optim, parameters[0].device.type).value.rpartition(".")
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optim == "sgd":
        options["momentum"] = settings.sgd_momentum
    else:
        options["betas"] = (settings.adam_beta1, settings.adam_beta2)
    if settings.optim not in ("sgd", "lion_32bit"):
        options["eps"] = settings.adam_epsilon
    if module == "torch.optim":
        options["fused"] = True  # one kernel for all matrices; the same formula
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return getattr(import_module(module), name)([group for group in groups if group["params"]], **options)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state(optimizer: Any, parameters: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The moments of every parameter by `MOMENT.NAME`: float32, or 8-bit codes with the largest of each block.

    Args:
        optimizer: after one step at least.
        parameters: by PEFT name.
    """
    moments = _moments(optimizer, parameters)
    return {name: moment.detach().cpu().numpy().copy() for name, moment in moments.items()}


def put_in_state(optimizer: Any, parameters: Mapping[str, Any], state: TrainingState, source: str) -> None:
    """Set what optimizer_state gave, and the steps that a bias correction counts.

    Raises:
        UserError: for every moment that is missing, unknown or misshapen.
    """
    _make_state(optimizer, parameters)
    moments = _moments(optimizer, parameters)
    check_matrices(moments, state.optimizer, source, "the checkpoint must have the moments of train.optim")
    for name, moment in moments.items():
        moment.copy_(torch.from_numpy(state.optimizer[name]))
    set_steps(optimizer, state.step)


def set_steps(optimizer: Any, step: int) -> None:
    """Set what a bias correction counts; not every optimizer has one."""
    for kept in optimizer.state.values():
        if "step" in kept:  # torch keeps a tensor of it, bitsandbytes an int
            kept["step"] = torch.full_like(kept["step"], step) if torch.is_tensor(kept["step"]) else step


def _make_state(optimizer: Any, parameters: Mapping[str, Any]) -> None:
    """Have the optimizer make its moments, paged or in 8 bits as it does: a step of rate 0 moves no weight."""
    rate = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 0.0)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    set_learning_rate(optimizer, rate)


def _moments(optimizer: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{TORCH_NAMES.get(key, key)}.{name}": moment
        for name, parameter in parameters.items()
        for key, moment in optimizer.state[parameter].items()
        if key not in NOT_KEPT and moment is not None  # torch's SGD without momentum says None
    }


class AdamWeightDecay(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not read by mypy here
    """Adam with decoupled weight decay and no bias correction: see twintune.optimizers for its formula.

    Moments are float32, as in the FP32StateAdamWeightDecay of the first BELLE jobs on MindFormers. Betas are float32
    too, as MindSpore holds them.
    """

    def __init__(
        self, parameters: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()  # type: ignore[untyped-decorator]  # as above
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Any, group: dict[str, Any]) -> None:
        beta1, beta2 = (float(np.float32(beta)) for beta in group["betas"])
        state = self.state[parameter]
        if not state:
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter, dtype=torch.float32)
        gradient = parameter.grad.float()
        m, v = state["exp_avg"].lerp_(gradient, 1 - beta1), state["exp_avg_sq"]
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        parameter.add_(update, alpha=-group["lr"])
