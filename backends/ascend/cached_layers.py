"""Decoder layers of the two networks as decoding with a cache needs them: in two parts, attention between them.

The parts are the network's own cells, with LoRA, NF4 codes or biases as they lie there; no weight is held twice.
"""

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from twintune.backends.ascend.phi_layers import HIDDEN_SCORE, PhiDecoderLayer


class Attention(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """Queries, keys and values of new tokens, and attention to any keys, in the dtypes of MindFormers' networks.

    Args:
        attention: LLamaAttention or PhiAttention.
        config: of its network.
    """

    def __init__(self, attention: nn.Cell, config: Any) -> None:
        super().__init__(auto_prefix=False)
        self.wq, self.wk, self.wv = attention.wq, attention.wk, attention.wv
        self.heads = config.num_heads
        self.groups = config.n_kv_heads or config.num_heads
        self.head_size = config.hidden_size // config.num_heads
        self.dtype = config.compute_dtype
        self.softmax_dtype = config.softmax_compute_type
        self.scale = ms.Tensor(1.0 / math.sqrt(self.head_size), self.dtype)
        self.queries_by_keys = ops.BatchMatMul(transpose_b=True)
        self.shares_by_values = ops.BatchMatMul()

    def split(self, x: ms.Tensor, heads: int) -> ms.Tensor:
        """[rows, length, heads * head size] to [rows, heads, length, head size]."""
        rows, length, _ = x.shape
        return ops.transpose(ops.cast(x, self.dtype).reshape(rows, length, heads, self.head_size), (0, 2, 1, 3))

    def split_groups(self, x: ms.Tensor) -> ms.Tensor:
        """[rows, length, key-value heads * head size] to [rows, key-value heads, length, head size]."""
        return self.split(x, self.groups)

    def project(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Normed [rows, length, hidden size] to queries, keys and values, by heads, not rotated yet."""
        return self.split(self.wq(x), self.heads), self.split_groups(self.wk(x)), self.split_groups(self.wv(x))

    def construct(self, query: ms.Tensor, key: ms.Tensor, value: ms.Tensor, hidden_keys: ms.Tensor) -> ms.Tensor:
        """What each query sees, [rows, length, hidden size].

        Args:
            query: rotated, [rows, heads, length, head size].
            key: rotated, [rows, key-value heads, keys, head size].
            value: of the same shape.
            hidden_keys: bool, true on keys that a query may not see, [rows or 1, 1, length or 1, keys].
        """
        rows, _, length, _ = query.shape
        keys = key.shape[2]
        query = query.reshape(rows, self.groups, -1, self.head_size)  # heads of a group lie side by side
        scores = self.queries_by_keys(query, key).reshape(rows, self.heads, length, keys) * self.scale
        scores = scores + ops.cast(hidden_keys, self.dtype) * HIDDEN_SCORE
        shares = ops.cast(ops.softmax(ops.cast(scores, self.softmax_dtype), -1), self.dtype)
        mixed = self.shares_by_values(shares.reshape(rows, self.groups, -1, keys), value)
        mixed = mixed.reshape(rows, self.heads, length, self.head_size)
        return ops.transpose(mixed, (0, 2, 1, 3)).reshape(rows, length, self.heads * self.head_size)


class LlamaParts(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A LLamaDecodeLayer: two norms, attention and MLP one after the other."""

    def __init__(self, layer: nn.Cell, config: Any) -> None:
        super().__init__(auto_prefix=False)
        self.attention_norm, self.ffn_norm = layer.attention_norm, layer.ffn_norm
        self.attention = Attention(layer.attention, config)
        self.rotary = layer.attention.apply_rotary_emb
        self.wo, self.feed_forward = layer.attention.wo, layer.feed_forward

    def before(self, x: ms.Tensor, tables: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """[rows, length, hidden size] to rotated queries and keys, and values."""
        query, key, value = self.attention.project(self.attention_norm(x))
        query, key = self.rotary(query, key, tables)
        return query, key, value

    def after(self, x: ms.Tensor, mixed: ms.Tensor) -> ms.Tensor:
        """The layer's input and what attention gave, both [rows, length, hidden size], to its output."""
        x = x + ops.cast(self.wo(mixed), x.dtype)
        return x + self.feed_forward(self.ffn_norm(x))


class PhiParts(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A PhiDecoderLayer: one norm, attention and MLP beside each other."""

    def __init__(self, layer: PhiDecoderLayer, config: Any) -> None:
        super().__init__(auto_prefix=False)
        self.norm_dtype = layer.norm_dtype
        self.input_norm = layer.input_norm
        self.attention = Attention(layer.attention, config)
        self.rotary = layer.attention.rotary
        self.dense, self.feed_forward = layer.attention.dense, layer.feed_forward

    def normed(self, x: ms.Tensor) -> ms.Tensor:
        """[rows, length, hidden size] to the same shape."""
        return ops.cast(self.input_norm(ops.cast(x, self.norm_dtype)), x.dtype)

    def before(self, x: ms.Tensor, tables: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """See LlamaParts."""
        query, key, value = self.attention.project(self.normed(x))
        query, key = self.rotary(query, key, tables)
        return query, key, value

    def after(self, x: ms.Tensor, mixed: ms.Tensor) -> ms.Tensor:
        """See LlamaParts."""
        return ops.cast(self.dense(mixed), x.dtype) + self.feed_forward(self.normed(x)) + x


class CachedLayer(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A layer with room for the keys and values of a batch, on one new token of each row.

    Args:
        parts: of the layer.
        rows: of the batch.
        slots: places for keys of a row.
        name: of the parameters that hold them, [rows * key-value heads * slots, head size] each.
    """

    def __init__(self, parts: LlamaParts | PhiParts, rows: int, slots: int, name: str) -> None:
        super().__init__(auto_prefix=False)
        self.parts = parts
        attention = parts.attention
        self.shape = (rows, attention.groups, slots, attention.head_size)
        empty = np.zeros((rows * attention.groups * slots, attention.head_size), np.float32)
        self.keys = _room(empty, attention.dtype, f"{name}.keys")
        self.values = _room(empty, attention.dtype, f"{name}.values")
        self.put = ops.ScatterUpdate()  # in place: the cache is never copied

    def construct(
        self, x: ms.Tensor, tables: tuple[ms.Tensor, ...], places: ms.Tensor, hidden_keys: ms.Tensor
    ) -> ms.Tensor:
        """[rows, 1, hidden size] to the same shape.

        Args:
            x: the layer's input.
            tables: of the rotary embedding.
            places: where the new keys go, int32 [rows * key-value heads].
            hidden_keys: see Attention, [rows, 1, 1, slots].
        """
        query, key, value = self.parts.before(x, tables)
        width = self.shape[-1]
        keys = self.put(self.keys, places, key.reshape(-1, width)).reshape(self.shape)
        values = self.put(self.values, places, value.reshape(-1, width)).reshape(self.shape)
        return self.parts.after(x, self.parts.attention(query, keys, values, hidden_keys))


def _room(empty: Any, dtype: Any, name: str) -> ms.Parameter:
    return ms.Parameter(ms.Tensor(empty).astype(dtype), name=name, requires_grad=False)
