"""Frozen linear layers that hold NF4 codes, and the swap of a built network's own layers for them.

Only codes and absmax stay in memory. A weight is dequantized where it is multiplied, once forward and once backward:
kept from one to the other, the dequantized weights of all layers would be the whole model again.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindformers.modules.layers import Linear
from mindpet.delta.lora import LoRADense
from mindspore import nn, ops

from twintune.converters.base_checkpoint import ABSMAX
from twintune.converters.nf4 import CODE_BOOK


class NF4Product(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """x W^T for a weight in NF4 codes.

    Args:
        shape: of the weight, [out, in].
        block_size: numbers that share an absmax; a divisor of out * in.
        dtype: of the product; the weight is dequantized in float32 and rounded to it, as bitsandbytes does.
    """

    def __init__(self, shape: tuple[int, int], block_size: int, dtype: Any) -> None:
        super().__init__(auto_prefix=False)
        self.shape = shape
        self.block_size = block_size
        self.dtype = dtype
        byte = np.arange(256)
        self.pairs = ms.Tensor(CODE_BOOK[np.stack((byte // 16, byte % 16), axis=-1)])  # both numbers of a byte
        self.times_transposed = ops.MatMul(transpose_b=True)
        self.times = ops.MatMul()

    def construct(self, x: ms.Tensor, codes: ms.Tensor, absmax: ms.Tensor) -> ms.Tensor:
        """[rows, in] in `dtype`, uint8 [out * in / 2], float32 [out * in / block_size] to [rows, out]."""
        # The dependence keeps the compiler from dequantizing all layers first.
        return self.times_transposed(x, self.weight(ops.depend(codes, x), absmax))

    def weight(self, codes: ms.Tensor, absmax: ms.Tensor) -> ms.Tensor:
        """The dequantized weight, [out, in] in `dtype`."""
        blocks = ops.gather(self.pairs, ops.cast(codes, ms.int32), 0).reshape(-1, self.block_size)
        return ops.cast(blocks * ops.expand_dims(absmax, 1), self.dtype).reshape(self.shape)

    def bprop(
        self, x: ms.Tensor, codes: ms.Tensor, absmax: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """The gradient of x is dout W; codes and absmax are frozen."""
        # Without the dependence the compiler would find the forward's weight again, and keep it until here.
        later = ops.depend(codes, dout)
        return self.times(dout, self.weight(later, absmax)), ops.zeros_like(codes), ops.zeros_like(absmax)


class NF4Linear(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """What a MindFormers Linear computes, from codes; its bias and activation are taken over.

    Args:
        linear: Linear or LoRADense; its parameters keep their names, and codes take that of the weight.
        block_size: see NF4Product.
    """

    def __init__(self, linear: Any, block_size: int) -> None:
        super().__init__(auto_prefix=False)
        out, width = linear.weight.shape
        name = linear.weight.name
        self.codes = _frozen(np.zeros(out * width // 2, np.uint8), name)
        self.absmax = _frozen(np.zeros(out * width // block_size, np.float32), name + ABSMAX)
        self.product = NF4Product((out, width), block_size, linear.dtype)
        self.dtype = linear.dtype
        self.has_bias = linear.has_bias
        if self.has_bias:
            self.bias = linear.bias
        self.activation = linear.activation
        self.activation_flag = linear.activation_flag

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """[..., in] to [..., out] in the same dtype."""
        flat = ops.cast(x, self.dtype).reshape(-1, x.shape[-1])
        y = self.frozen(flat)
        if self.activation_flag:
            y = self.activation(y)
        return ops.cast(y, x.dtype).reshape((*x.shape[:-1], y.shape[-1]))

    def frozen(self, x: ms.Tensor) -> ms.Tensor:
        """The part that is not trained, x W^T + b: [rows, in] to [rows, out]."""
        y = self.product(x, self.codes, self.absmax)
        if self.has_bias:
            y = y + ops.cast(self.bias, self.dtype)
        return y


class NF4LoraLinear(NF4Linear):
    """What a LoRADense computes, from codes; its matrices, scaling and dropout are taken over."""

    def __init__(self, linear: LoRADense, block_size: int) -> None:
        super().__init__(linear, block_size)
        self.mindpet_delta_lora_a = linear.mindpet_delta_lora_a
        self.mindpet_delta_lora_b = linear.mindpet_delta_lora_b
        self.lora_dropout = linear.lora_dropout
        self.scaling = linear.scaling
        self.times_transposed = ops.MatMul(transpose_b=True)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """[..., in] to [..., out] in the same dtype."""
        flat = ops.cast(x, self.dtype).reshape(-1, x.shape[-1])
        low = self.times_transposed(self.lora_dropout(flat), ops.cast(self.mindpet_delta_lora_a, self.dtype))
        change = self.times_transposed(low, ops.cast(self.mindpet_delta_lora_b, self.dtype))
        y = self.frozen(flat) + change * ops.cast(self.scaling, self.dtype)
        if self.activation_flag:
            y = self.activation(y)
        return ops.cast(y, x.dtype).reshape((*x.shape[:-1], y.shape[-1]))


def _frozen(values: Any, name: str) -> ms.Parameter:
    return ms.Parameter(ms.Tensor(values), name=name, requires_grad=False)


def put_on_nf4(network: nn.Cell, block_size: int) -> None:
    """Replace every linear layer of the decoder by one that holds codes, all zeros yet.

    Args:
        network: MindFormers network, with LoRA or without; changed in place, before it is compiled. The float weights
            of these layers are let go.
        block_size: numbers that share an absmax.
    """
    for _, parent in list(network.cells_and_names()):
        for name, cell in list(parent.name_cells().items()):
            if isinstance(cell, Linear | LoRADense) and ".layers." in cell.weight.name:
                kind = NF4LoraLinear if isinstance(cell, LoRADense) else NF4Linear
                parent.insert_child_to_cell(name, kind(cell, block_size))  # plain assignment would rename parameters
