"""The optimizers of the ascend backend: MindFormers', MindSpore's, and Lion, which neither has."""

from typing import Any

import mindspore as ms
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import nn, ops

lion_update = ops.MultitypeFuncGraph("lion_update")


@lion_update.register(*["Tensor"] * 7)  # type: ignore[untyped-decorator]  # mindspore ships no types
def _lion_update(
    beta1: ms.Tensor,
    beta2: ms.Tensor,
    rate: ms.Tensor,
    decay: ms.Tensor,
    weight: ms.Tensor,
    gradient: ms.Tensor,
    mean: ms.Tensor,
) -> bool:
    gradient = ops.cast(gradient, ms.float32)
    direction = ops.sign(beta1 * mean + (1 - beta1) * gradient)
    moved = (1 - rate * decay) * ops.cast(weight, ms.float32) - rate * direction
    ops.assign(mean, beta2 * mean + (1 - beta2) * gradient)
    ops.assign(weight, ops.cast(moved, weight.dtype))
    return True


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER)
class TwintuneLion(nn.Optimizer):  # type: ignore[misc]  # mindspore ships no types
    """Lion: see twintune.optimizers for its formula.

    Inputs:
        gradients: one for each parameter, of its shape.
    """

    def __init__(
        self,
        params: list[Any],
        learning_rate: Any = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, params, weight_decay)
        self.beta1 = ms.Tensor(beta1, ms.float32)
        self.beta2 = ms.Tensor(beta2, ms.float32)
        self.exp_avg = self.parameters.clone(prefix="adam_m", init="zeros")  # as MindSpore calls such a mean

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> Any:
        """Update every parameter."""
        decay = self.get_weight_decay()
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        update = ops.partial(lion_update, self.beta1, self.beta2, rate)
        if self.is_group:
            return self.hyper_map(update, decay, self.parameters, gradients, self.exp_avg)
        return self.hyper_map(ops.partial(update, decay), self.parameters, gradients, self.exp_avg)
