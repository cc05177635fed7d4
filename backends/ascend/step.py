"""The training step on MindSpore: accumulation and loss normaliser as design rule 3 has them.

MindFormers ignores `gradient_accumulation_steps` outside semi-auto parallel mode and averages the
means of micro-batches inside it. This cell takes all rows of an optimizer step at once, adds up
loss sums and gradients micro-batch by micro-batch in one compiled loop body, and divides once by
the number of trained tokens.
"""

from typing import Any

import mindspore as ms
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper.wrapper import MFTrainOneStepCell
from mindspore import nn, ops

from twintune.backends.ascend.packed import PackedNetwork

add = ops.MultitypeFuncGraph("add")
divide = ops.MultitypeFuncGraph("divide")
zeros = ops.MultitypeFuncGraph("zeros")
square_sum = ops.MultitypeFuncGraph("square_sum")
scale = ops.MultitypeFuncGraph("scale")
take = ops.MultitypeFuncGraph("take")


@add.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _add(left: ms.Tensor, right: ms.Tensor) -> ms.Tensor:
    return left + ops.cast(right, ms.float32)


@zeros.register("Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _zeros(weight: ms.Tensor) -> ms.Tensor:
    return ops.zeros_like(ops.cast(weight, ms.float32))


@divide.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _divide(divisor: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return ops.cast(gradient, ms.float32) / divisor


@square_sum.register("Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _square_sum(gradient: ms.Tensor) -> ms.Tensor:
    return ops.reduce_sum(ops.square(gradient))


@scale.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _scale(factor: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return gradient * factor


@take.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _take(numbers: ms.Tensor, rows: ms.Tensor) -> ms.Tensor:
    return ops.gather(rows, numbers, 0)


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class TwintuneTrainOneStepCell(MFTrainOneStepCell):  # type: ignore[misc]  # mindformers ships no types
    """One optimizer step over `accumulation` micro-batches, clipped as torch.nn.utils.clip_grad_norm_.

    Inputs:
        input_ids, labels: int32 [accumulation * batch, row_length + 1].
        borders: where the conversations of packed rows end, int32 [accumulation * batch, ...]; none otherwise.

    Outputs:
        loss (mean over the step's trained tokens), overflow flag, loss scale, learning rate,
        gradient norm before clipping, trained tokens: all scalars.
    """

    def __init__(
        self, network: nn.Cell, optimizer: nn.Cell, accumulation: int = 1, borders: str = "", **kwargs: Any
    ) -> None:
        super().__init__(network, optimizer, **kwargs)
        if borders:
            self.network = PackedNetwork(network, borders)
        self.max_norm = kwargs["max_grad_norm"]
        self.accumulation = accumulation
        self.zero = ms.Tensor(0.0, ms.float32)

    def construct(self, *rows: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Sum, divide, clip, update."""
        sens = self.scale_sense
        loss, tokens, grads = self.sums(rows, sens)
        loss = loss / tokens
        grads = self.hyper_map(ops.partial(divide, sens * tokens), grads)
        grads = self.grad_reducer(grads)
        norm = ops.sqrt(ops.addn(self.hyper_map(square_sum, grads)))
        overflow = self.process_loss_scale(ops.logical_not(ops.isfinite(norm)))
        clip = ops.minimum(self.max_norm / (norm + 1e-6), ms.Tensor(1.0, ms.float32))
        grads = self.hyper_map(ops.partial(scale, clip), grads)
        learning_rate = self.learning_rate(self.optimizer.global_step).reshape(())
        if not overflow:
            loss = ops.depend(loss, self.optimizer(grads))
        return loss, overflow, sens, learning_rate, norm, tokens

    def sums(self, rows: tuple[ms.Tensor, ...], sens: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        """Loss sum, trained tokens and gradient sums over all micro-batches of the step."""
        if self.accumulation == 1:
            loss, tokens, grads = self.micro_batch(rows, sens)
            return loss.reshape(()), tokens.reshape(()), grads
        batch = rows[0].shape[0] // self.accumulation
        loss, tokens = self.zero, self.zero
        grads = self.hyper_map(zeros, self.weights)
        micro = ms.Tensor(0, ms.int32)
        while micro < self.accumulation:
            numbers = micro * batch + ops.arange(0, batch)
            more = self.micro_batch(self.hyper_map(ops.partial(take, numbers), rows), sens)
            loss = loss + more[0].reshape(())
            tokens = tokens + more[1].reshape(())
            grads = self.hyper_map(add, grads, more[2])
            micro = micro + 1
        return loss, tokens, grads

    def micro_batch(
        self, rows: tuple[ms.Tensor, ...], sens: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        """Loss sum and trained tokens of one micro-batch, and the gradients of `sens * loss sum`."""
        loss, tokens = self.network(*rows)
        sens_loss = ops.ones_like(loss) * ops.cast(sens, loss.dtype)
        sens_tokens = ops.zeros_like(tokens)
        grads = self.grad(self.network, self.weights)(*rows, (sens_loss, sens_tokens))
        return loss, tokens, grads
