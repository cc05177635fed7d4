"""The optimizers of the cuda backend: torch's AdamW, and MindSpore's AdamWeightDecay, which torch has not."""

from typing import Any

import numpy as np
import torch

from twintune.backends import AdamW


def make_optimizer(settings: AdamW, parameters: list[Any]) -> Any:
    """The optimizer that the settings describe, over float32 parameters."""
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    return (torch.optim.AdamW if settings.bias_correction else AdamWeightDecay)(parameters, **options)


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
            state["m"], state["v"] = (torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2))
        gradient = parameter.grad.float()
        m, v = state["m"].lerp_(gradient, 1 - beta1), state["v"]
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        parameter.add_(update, alpha=-group["lr"])
