"""Losses and gradients of one optimizer step on MindSpore, normalised as design rule 3 has it.

MindFormers ignores `gradient_accumulation_steps` outside semi-auto parallel mode and averages the
means of micro-batches inside it. This cell takes all rows of an optimizer step at once, adds up
gradients of loss sums micro-batch by micro-batch in one compiled loop body, and divides once by
the number of trained tokens.
"""

import mindspore as ms
from mindspore import nn, ops

from twintune.backends.ascend.cpu_loss import use_unbiased_functions
from twintune.backends.ascend.rank_sums import RankSums

add = ops.MultitypeFuncGraph("add")
divide = ops.MultitypeFuncGraph("divide")
zeros = ops.MultitypeFuncGraph("zeros")
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


@take.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _take(numbers: ms.Tensor, rows: ms.Tensor) -> ms.Tensor:
    return ops.gather(rows, numbers, 0)


class MeanGradients(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Gradients of the mean loss over the trained tokens of `accumulation` micro-batches.

    Args:
        network: gives loss sum and trained tokens of a micro-batch.
        weights: what is differentiated by.
        accumulation: micro-batches in the rows of a call.
        world_size: ranks whose sums are added before the division.

    Inputs:
        sens: scale of the loss in the backward pass, a scalar; the gradients are divided by it again.
        rows: input_ids and labels, int32 [accumulation * batch, row_length + 1], and for packed rows borders.

    Outputs:
        Loss sums and trained tokens by micro-batch, float32 [accumulation] each, and a tuple of float32 gradients.
    """

    def __init__(self, network: nn.Cell, weights: ms.ParameterTuple, accumulation: int, world_size: int = 1) -> None:
        super().__init__(auto_prefix=False)
        use_unbiased_functions(network)
        self.network = network
        self.weights = weights
        self.accumulation = accumulation
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        self.hyper_map = ops.HyperMap()
        self.rank_sums = RankSums(world_size)
        self.micro_numbers = ms.Tensor(list(range(accumulation)), ms.int32)

    def construct(self, sens: ms.Tensor, *rows: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        """Sum over the micro-batches and ranks, divide once."""
        losses, counts, grads = self.sums(rows, sens)
        sums = self.rank_sums((losses, counts) + grads)  # noqa: RUF005  a graph adds tuples
        losses, counts, grads = sums[0], sums[1], sums[2:]
        return losses, counts, self.hyper_map(ops.partial(divide, sens * ops.reduce_sum(counts)), grads)

    def sums(self, rows: tuple[ms.Tensor, ...], sens: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        """Loss sum and trained tokens of each micro-batch, and gradient sums over all of them."""
        if self.accumulation == 1:
            loss, count, grads = self.micro_batch(rows, sens)
            return loss.reshape((1,)), count.reshape((1,)), grads
        batch = rows[0].shape[0] // self.accumulation
        losses = ops.zeros_like(ops.cast(self.micro_numbers, ms.float32))
        counts = losses
        # A tuple of one tensor comes out of MindSpore's loop as garbage: the only gradient of a prefix has company.
        grads = self.hyper_map(zeros, self.weights) + (counts,)  # noqa: RUF005  a graph adds tuples
        micro = ms.Tensor(0, ms.int32)
        while micro < self.accumulation:
            numbers = micro * batch + ops.arange(0, batch)
            more = self.micro_batch(self.hyper_map(ops.partial(take, numbers), rows), sens)
            here = self.micro_numbers == micro
            losses = ops.where(here, more[0].reshape(()), losses)
            counts = ops.where(here, more[1].reshape(()), counts)
            grads = self.hyper_map(add, grads, more[2] + (counts,))
            micro = micro + 1
        return losses, counts, grads[:-1]

    def micro_batch(
        self, rows: tuple[ms.Tensor, ...], sens: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        """Loss sum and trained tokens of one micro-batch, and the gradients of `sens * loss sum`."""
        loss, tokens = self.network(*rows)
        sens_loss = ops.ones_like(loss) * ops.cast(sens, loss.dtype)
        sens_tokens = ops.zeros_like(tokens)
        grads = self.grad(self.network, self.weights)(*rows, (sens_loss, sens_tokens))
        return loss, tokens, grads
