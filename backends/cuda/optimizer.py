"""The optimizers of the cuda backend: torch's AdamW, and MindSpore's AdamWeightDecay, which torch has not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends import Optimizer
from twintune.backends.matching import check_matrices
from twintune.converters.training_state import TrainingState

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names


def make_optimizer(settings: Optimizer, parameters: list[Any]) -> Any:
    """The optimizer that the settings describe, over float32 parameters."""
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    return (torch.optim.AdamW if settings.optim == "adamw_torch" else AdamWeightDecay)(parameters, **options)


def optimizer_state(optimizer: Any, parameters: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """The moments of every parameter, float32 by `MOMENT.NAME`; `parameters` by PEFT name."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment].cpu().numpy().copy()
        for name, parameter in parameters.items()
        for moment in MOMENTS
    }


def put_in_state(optimizer: Any, parameters: Mapping[str, Any], state: TrainingState, source: str) -> None:
    """Set what optimizer_state gave, and the steps that the bias correction counts.

    Raises:
        UserError: for every moment that is missing, unknown or misshapen.
    """
    wanted = {f"{moment}.{name}": parameter for name, parameter in parameters.items() for moment in MOMENTS}
    check_matrices(wanted, state.optimizer, source, "the checkpoint must have the moments of train.optim")
    for name, parameter in parameters.items():
        moments = {moment: torch.from_numpy(state.optimizer[f"{moment}.{name}"]) for moment in MOMENTS}
        on_device = {moment: tensor.to(parameter.device) for moment, tensor in moments.items()}
        optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **on_device}


class AdamWeightDecay(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not read by mypy here
    """Adam with decoupled weight decay and without bias correction, as mindspore.nn.AdamWeightDecay.

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  w -= lr (m / (sqrt(v) + eps) + weight_decay w).
    Moments are float32, as in the FP32StateAdamWeightDecay of the first BELLE jobs on MindFormers. Betas are float32
    too, as MindSpore holds them: 1 - beta2 of 0.999 is then 0.00099998713, which moves every update by 6e-6 of itself.
    """

    def __init__(
        self, parameters: list[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
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
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, dtype=torch.float32)
        gradient = parameter.grad.float()
        m, v = state["exp_avg"].lerp_(gradient, 1 - beta1), state["exp_avg_sq"]
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        parameter.add_(update, alpha=-group["lr"])
