"""The four NPU kernels of MindFormers' inference, computed with basic operations, so that its network runs on a CPU.

What they take and give is told by mindspore.ops (ReshapeAndCache, PagedAttention, ApplyRotaryPosEmb, and in TH layout
FlashAttentionScore) and mindformers.modules.infer_attention, which calls them.
"""

from typing import Any

import mindspore as ms
import pytest
from mindformers.modules import infer_attention
from mindformers.modules.paged_attention_mgr import PagedAttentionMgr
from mindspore import mint, nn, ops

HIDDEN = -1e9  # added to the score of a key that a query may not see


def sequence_numbers(tokens: int, ends: ms.Tensor) -> ms.Tensor:
    """The sequence of each of the tokens that lie side by side, int32 [tokens]."""
    return (ops.arange(tokens).reshape(-1, 1) >= ends.reshape(1, -1)).astype(ms.int32).sum(1)


class RotaryEmbedding(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """InferRotaryEmbedding: whole tables for prompts, whose positions begin at 0 each; a row a token after them."""

    def __init__(self, rotary_cos_format: int) -> None:
        super().__init__()

    def construct(self, query: ms.Tensor, key: ms.Tensor, tables: Any, lengths: ms.Tensor) -> Any:
        cosines, sines, _ = tables
        tokens = query.shape[0] * query.shape[1]
        ends = ops.cumsum(lengths, 0)
        numbers = ops.minimum(sequence_numbers(tokens, ends), lengths.shape[0] - 1)
        positions = ops.arange(tokens) - ops.gather(ends - lengths, numbers, 0)
        rows = ops.arange(tokens) if tokens == lengths.shape[0] else positions  # the tests' prompts are longer than 1
        cosines = ops.gather(cosines, rows, 0).reshape(tokens, 1, -1)
        sines = ops.gather(sines, rows, 0).reshape(tokens, 1, -1)
        return self.turned(query, cosines, sines), self.turned(key, cosines, sines)

    def turned(self, x: ms.Tensor, cosines: ms.Tensor, sines: ms.Tensor) -> ms.Tensor:
        half = cosines.shape[-1] // 2
        heads = x.reshape(cosines.shape[0], -1, cosines.shape[-1])
        swapped = ops.concat((-heads[:, :, half:], heads[:, :, :half]), -1)
        return (heads * cosines + swapped * sines).reshape(x.shape)


class FlashAttention(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """mindformers.modules.flash_attention.FlashAttention over sequences side by side, each causal."""

    def __init__(self, head_num: int, scale_value: float, **settings: Any) -> None:
        super().__init__()
        assert settings["input_layout"] == "TH"
        self.heads, self.scale = head_num, scale_value
        self.queries_by_keys, self.shares_by_values = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()

    def construct(
        self,
        query: ms.Tensor,
        key: ms.Tensor,
        value: ms.Tensor,
        attn_mask: Any = None,
        alibi_mask: Any = None,
        prefix: Any = None,
        padding_mask: Any = None,
        actual_seq_qlen: Any = None,
        actual_seq_kvlen: Any = None,
    ) -> ms.Tensor:
        tokens, hidden = query.shape
        size = hidden // self.heads
        groups = key.shape[1] // size
        query = query.reshape(tokens, self.heads, size).transpose(1, 0, 2).reshape(groups, -1, size)
        key, value = (x.reshape(tokens, groups, size).transpose(1, 0, 2) for x in (key, value))
        scores = self.queries_by_keys(query, key).reshape(self.heads, tokens, tokens) * self.scale
        numbers = sequence_numbers(tokens, ops.cumsum(actual_seq_qlen, 0))
        places = ops.arange(tokens)
        other = numbers.reshape(-1, 1) != numbers.reshape(1, -1)
        later = places.reshape(-1, 1) < places.reshape(1, -1)
        scores = scores + ops.logical_or(other, later).astype(ms.float32) * HIDDEN
        shares = ops.softmax(scores, -1).reshape(groups, -1, tokens)
        mixed = self.shares_by_values(shares, value).reshape(self.heads, tokens, size)
        return mixed.transpose(1, 0, 2).reshape(tokens, hidden)


class ReshapeAndCache(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """New keys and values into their slots, in place."""

    def construct(
        self, key: ms.Tensor, value: ms.Tensor, keys: ms.Parameter, values: ms.Parameter, slots: ms.Tensor
    ) -> ms.Tensor:
        _, block_size, groups, size = keys.shape
        places = ops.stack((slots // block_size, slots % block_size), 1)
        put = ops.scatter_nd_update(keys, places, key.reshape(-1, groups, size))
        return ops.depend(put, ops.scatter_nd_update(values, places, value.reshape(-1, groups, size)))


class PagedAttention(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """A new token of each row over what lies in the row's blocks."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.queries_by_keys, self.shares_by_values = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()

    def of_rows(self, cache: ms.Tensor, tables: ms.Tensor) -> ms.Tensor:
        _, _, groups, size = cache.shape
        rows = ops.gather(cache, tables.reshape(-1), 0).reshape(tables.shape[0], -1, groups, size)
        return rows.transpose(0, 2, 1, 3)

    def construct(
        self, query: ms.Tensor, keys: ms.Parameter, values: ms.Parameter, tables: ms.Tensor, lengths: ms.Tensor
    ) -> ms.Tensor:
        rows = query.shape[0]
        _, _, groups, size = keys.shape
        scores = self.queries_by_keys(query.reshape(rows, groups, -1, size), self.of_rows(keys, tables)) * self.scale
        beyond = ops.arange(scores.shape[3]).reshape(1, 1, 1, -1) >= lengths.reshape(-1, 1, 1, 1)
        shares = ops.softmax(scores + beyond.astype(ms.float32) * HIDDEN, -1)
        return self.shares_by_values(shares, self.of_rows(values, tables)).reshape(query.shape)


class Manager(PagedAttentionMgr):  # type: ignore[misc]  # mindspore ships no types
    """MindFormers' own, but for the kernels."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.reshape_and_cache = ReshapeAndCache()
        self.paged_attention = PagedAttention(self.scale_value)


def put_on_cpu(patch: pytest.MonkeyPatch) -> None:
    """Have MindFormers build its networks with these, and sum lengths as a CPU can."""
    patch.setattr(infer_attention, "InferRotaryEmbedding", RotaryEmbedding)
    patch.setattr(infer_attention, "FlashAttention", FlashAttention)
    patch.setattr(infer_attention, "PagedAttentionMgr", Manager)
    patch.setattr(mint, "cumsum", ops.cumsum)
