"""The training step on MindSpore: clipping and update around the gradients of accumulation.py."""

from typing import Any

import mindspore as ms
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper.wrapper import MFTrainOneStepCell
from mindspore import nn, ops

from twintune.backends.ascend.accumulation import MeanGradients
from twintune.backends.ascend.nf4 import put_on_nf4
from twintune.backends.ascend.packed import PackedNetwork

square_sum = ops.MultitypeFuncGraph("square_sum")
scale = ops.MultitypeFuncGraph("scale")


@square_sum.register("Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _square_sum(gradient: ms.Tensor) -> ms.Tensor:
    return ops.reduce_sum(ops.square(gradient))


@scale.register("Tensor", "Tensor")  # type: ignore[untyped-decorator]  # mindspore ships no types
def _scale(factor: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return gradient * factor


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class TwintuneTrainOneStepCell(MFTrainOneStepCell):  # type: ignore[misc]  # mindformers ships no types
    """One optimizer step over `accumulation` micro-batches, clipped as torch.nn.utils.clip_grad_norm_.

    Inputs:
        input_ids, labels: int32 [accumulation * batch, row_length + 1].
        borders: where the conversations of packed rows end, int32 [accumulation * batch, ...]; none otherwise.

    Outputs:
        loss (mean over the step's trained tokens, of all ranks), overflow flag, loss scale, learning rate,
        gradient norm before clipping, trained tokens: all scalars.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Cell,
        accumulation: int = 1,
        world_size: int = 1,
        borders: str = "",
        nf4_block_size: int = 0,
        **kwargs: Any,
    ) -> None:
        if nf4_block_size:
            # Here: MindFormers' Trainer has built the network and loads its weights next, as codes.
            put_on_nf4(network, nf4_block_size)
        super().__init__(network, optimizer, **kwargs)
        if borders:
            self.network = PackedNetwork(network, borders)
        self.max_norm = kwargs["max_grad_norm"]
        self.gradients = MeanGradients(self.network, self.weights, accumulation, world_size)

    def construct(self, *rows: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Mean gradients, clip, update."""
        sens = self.scale_sense
        losses, counts, grads = self.gradients(sens, *rows)
        tokens = ops.reduce_sum(counts)
        loss = ops.reduce_sum(losses) / tokens
        grads = self.grad_reducer(grads)
        norm = ops.sqrt(ops.addn(self.hyper_map(square_sum, grads)))
        overflow = self.process_loss_scale(ops.logical_not(ops.isfinite(norm)))
        clip = ops.minimum(self.max_norm / (norm + 1e-6), ms.Tensor(1.0, ms.float32))
        grads = self.hyper_map(ops.partial(scale, clip), grads)
        learning_rate = self.learning_rate(self.optimizer.global_step).reshape(())
        if not overflow:
            loss = ops.depend(loss, self.optimizer(grads))
        return loss, overflow, sens, learning_rate, norm, tokens
