"""The layers of our Phi network on MindSpore, computed as transformers' modeling_phi.py does.

Attention and MLP read the same normed input, and both are added to the residual (parallel, as in GPT-J); the rotary
embedding turns the first part of each head only; every linear layer and norm has a bias.
"""

import math
from typing import Any

import mindspore as ms
from mindformers.modules.flash_attention import FlashAttention
from mindformers.modules.layers import LayerNorm, Linear, RotaryEmbedding
from mindspore import nn, ops

from twintune.backends.ascend.phi_config import PhiConfig

HIDDEN_SCORE = -10000.0  # added to the scores of hidden keys, as MindFormers' masks do; softmax then gives 0
FLASH_EOD = 8  # sparse mode of the NPU's kernel: causal inside each conversation


class NewGelu(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """GELU by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415), transformers' gelu_new."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = ops.GeLU()  # written out it would need ops.tanh, which is off by 1e-4 on MindSpore's CPU

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Any shape to the same shape."""
        return self.gelu(x)


class PartialRotaryEmbedding(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """MindFormers' rotary embedding on the first `rotary_size` numbers of each head; the others stay."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(auto_prefix=False)
        self.size = config.rotary_size
        # By slices: the other way broadcasts in a BatchMatMul, which CPU refuses.
        self.rotary = RotaryEmbedding(config.rotary_size, config.rotary_dtype, use_rope_slice=True)

    def construct(self, query: ms.Tensor, key: ms.Tensor, tables: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ms.Tensor]:
        """[rows, heads, length, head size] each to the same shapes; `tables` are those of FreqsMgr."""
        turned_query, turned_key = self.rotary(query[..., : self.size], key[..., : self.size], tables)
        return (
            ops.concat((turned_query, query[..., self.size :]), -1),
            ops.concat((turned_key, key[..., self.size :]), -1),
        )


class PhiAttention(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Causal self-attention with partial rotary embedding and a bias on each projection."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.heads, self.groups = config.num_heads, config.n_kv_heads
        self.head_size = config.hidden_size // config.num_heads
        self.dtype = config.compute_dtype
        self.softmax_dtype = config.softmax_compute_type
        self.scale = 1.0 / math.sqrt(self.head_size)
        self.wq = _linear(config, config.hidden_size, config.hidden_size)
        self.wk = _linear(config, config.hidden_size, self.groups * self.head_size)
        self.wv = _linear(config, config.hidden_size, self.groups * self.head_size)
        self.dense = _linear(config, config.hidden_size, config.hidden_size)
        self.rotary = PartialRotaryEmbedding(config)
        self.use_flash_attention = config.use_flash_attention
        self.by_ends = config.use_eod_attn_mask_compression
        if self.use_flash_attention:
            self.flash_attention = FlashAttention(
                head_num=self.heads,
                keep_prob=1.0,
                scale_value=self.scale,
                next_tokens=0,
                sparse_mode=FLASH_EOD if self.by_ends else 0,
                input_layout="TND" if self.by_ends else "BNSD",
                use_attention_mask=True,
                use_actual_seqlen=self.by_ends,
            )

    def construct(
        self, x: ms.Tensor, tables: tuple[ms.Tensor, ...], hidden_keys: ms.Tensor, ends: ms.Tensor | None = None
    ) -> ms.Tensor:
        """[rows, length, hidden size] to the same shape.

        Args:
            x: normed input.
            tables: of the rotary embedding.
            hidden_keys: uint8, 1 on keys that a query may not see, [rows, 1, length, length].
            ends: where packed conversations end, int32, for flash attention with use_eod_attn_mask_compression.
        """
        query, key = self.rotary(self._split(self.wq(x), self.heads), self._split(self.wk(x), self.groups), tables)
        value = self._split(self.wv(x), self.groups)
        if not self.use_flash_attention:
            mixed = self._attend(query, key, value, hidden_keys)
        elif self.by_ends:
            mixed = self._flash_by_ends(query, key, value, hidden_keys, ends)
        else:
            mixed = self.flash_attention(query, key, value, hidden_keys)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))
        return ops.cast(self.dense(mixed.reshape(x.shape)), x.dtype)

    def _split(self, x: ms.Tensor, heads: int) -> ms.Tensor:
        rows, length, _ = x.shape
        return ops.transpose(ops.cast(x, self.dtype).reshape(rows, length, heads, self.head_size), (0, 2, 1, 3))

    def _attend(self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, hidden_keys: ms.Tensor) -> ms.Tensor:
        if self.groups < self.heads:
            key = ops.repeat_interleave(key, self.heads // self.groups, 1)
            value = ops.repeat_interleave(value, self.heads // self.groups, 1)
        scores = ops.BatchMatMul(transpose_b=True)(query, key) * self.scale
        scores = ops.cast(scores, self.softmax_dtype) + ops.cast(hidden_keys, self.softmax_dtype) * HIDDEN_SCORE
        return ops.BatchMatMul()(ops.cast(ops.softmax(scores, -1), self.dtype), value)

    def _flash_by_ends(
        self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, hidden_keys: ms.Tensor, ends: ms.Tensor
    ) -> ms.Tensor:
        """The kernel wants all rows in one line, [rows * length, heads, head size]."""
        rows, _, length, _ = query.shape
        query, key, value = self._line(query), self._line(key), self._line(value)
        mixed = self.flash_attention(query, key, value, hidden_keys, actual_seq_qlen=ends, actual_seq_kvlen=ends)
        return ops.transpose(mixed.reshape(rows, length, self.heads, self.head_size), (0, 2, 1, 3))

    def _line(self, x: ms.Tensor) -> ms.Tensor:
        return ops.transpose(x, (0, 2, 1, 3)).reshape(-1, x.shape[1], self.head_size)


class PhiFeedForward(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """The MLP of two linear layers, without a gate."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.dtype = config.compute_dtype
        self.fc1 = _linear(config, config.hidden_size, config.intermediate_size)
        self.activation = NewGelu()
        self.fc2 = _linear(config, config.intermediate_size, config.hidden_size)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """[rows, length, hidden size] to the same shape."""
        return ops.cast(self.fc2(self.activation(self.fc1(ops.cast(x, self.dtype)))), x.dtype)


class PhiDecoderLayer(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """One norm, attention and MLP beside each other, one residual."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.norm_dtype = config.layernorm_compute_type
        self.input_norm = layer_norm(config)
        self.attention = PhiAttention(config)
        self.feed_forward = PhiFeedForward(config)

    def construct(
        self, x: ms.Tensor, tables: tuple[ms.Tensor, ...], hidden_keys: ms.Tensor, ends: ms.Tensor | None = None
    ) -> ms.Tensor:
        """[rows, length, hidden size] to the same shape; for the others see PhiAttention."""
        normed = ops.cast(self.input_norm(ops.cast(x, self.norm_dtype)), x.dtype)
        return self.attention(normed, tables, hidden_keys, ends) + self.feed_forward(normed) + x


def layer_norm(config: PhiConfig) -> Any:
    """MindFormers' LayerNorm with weight and bias (`gamma`, `beta`) in the dtype that norms compute in."""
    return LayerNorm((config.hidden_size,), config.layer_norm_eps, config.layernorm_compute_type)


def _linear(config: PhiConfig, inputs: int, outputs: int) -> Any:
    return Linear(
        inputs,
        outputs,
        has_bias=True,
        compute_dtype=config.compute_dtype,
        param_init_type=config.param_init_type,
    )
