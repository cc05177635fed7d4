"""Decoding with a cache of keys and values, on any device: a graph for a prompt and one for one token of each row.

MindFormers' own `use_past` needs NPU kernels. Shapes are fixed, so that a graph is compiled once for each bucket.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from twintune.backends.ascend.cached_layers import CachedLayer, LlamaParts, PhiParts
from twintune.backends.ascend.phi import PhiForCausalLM


def parts_of(network: nn.Cell) -> list[LlamaParts | PhiParts]:
    """The layers of a LlamaForCausalLM or PhiForCausalLM, in parts."""
    kind = PhiParts if isinstance(network, PhiForCausalLM) else LlamaParts
    return [kind(layer, network.config) for layer in network.model.layers]


class Ends(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """What lies before and behind the layers: embedding, rotary tables, last norm, head."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        model = network.model
        self.dtype = network.config.compute_dtype
        self.norm_dtype = network.config.layernorm_compute_type
        self.phi = isinstance(network, PhiForCausalLM)
        self.embedding, self.norm_out, self.lm_head = model.tok_embeddings, model.norm_out, network.lm_head
        tables = model.freqs_mgr
        self.cosines, self.sines, self.swap_mask = tables.freqs_cos, tables.freqs_sin, tables.swap_mask

    def embed(self, tokens: ms.Tensor) -> ms.Tensor:
        """int32 [rows, length] to [rows, length, hidden size]."""
        return ops.cast(self.embedding(tokens), self.dtype)

    def tables(self, positions: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Rotary tables of int32 [rows, length] positions, [rows, 1, length, head size] each."""
        cosines = ops.expand_dims(ops.gather(self.cosines, positions, 0), 1)
        return cosines, ops.expand_dims(ops.gather(self.sines, positions, 0), 1), self.swap_mask

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """[rows, hidden size] behind the last layer to float32 logits [rows, vocabulary]."""
        x = ops.cast(x, self.norm_dtype) if self.phi else x  # MindFormers' RMSNorm casts by itself
        x = ops.cast(self.norm_out(x), self.dtype)
        return ops.cast(self.lm_head(x), ms.float32)


class Prompt(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """One prompt, padded on the right: logits after its last token, and its keys and values for the cache.

    Args:
        network: LlamaForCausalLM, with a prefix or without, or PhiForCausalLM; its cells are shared.
        layers: its parts.
        virtual_tokens: of its prefix; 0 for none.
    """

    def __init__(self, network: nn.Cell, layers: list[LlamaParts | PhiParts], virtual_tokens: int) -> None:
        super().__init__(auto_prefix=False)
        self.ends = Ends(network)
        self.layers = nn.CellList(layers, auto_prefix=False)
        self.virtual_tokens = virtual_tokens
        if virtual_tokens:
            self.prefix = network.prefix

    def construct(self, tokens: ms.Tensor, last: ms.Tensor) -> tuple[ms.Tensor, list[ms.Tensor]]:
        """Compiled once for each length.

        Args:
            tokens: int32 [1, length].
            last: place of the prompt's last token, int32 [1].

        Returns:
            Logits, float32 [1, vocabulary], and keys and values of each layer by turns, [1, key-value heads, virtual
            tokens and length, head size] each.
        """
        x = self.ends.embed(tokens)
        positions = ops.arange(tokens.shape[1]).astype(ms.int32)
        tables = self.ends.tables(ops.expand_dims(positions, 0))
        slots = ops.arange(self.virtual_tokens + tokens.shape[1]).astype(ms.int32)
        hidden_keys = slots.reshape(1, 1, 1, -1) > positions.reshape(1, 1, -1, 1) + self.virtual_tokens
        prefix = self.prefix(1) if self.virtual_tokens else ()
        kept = []
        for number, layer in enumerate(self.layers):
            query, key, value = layer.before(x, tables)
            if self.virtual_tokens:
                key = ops.concat((layer.attention.split_groups(prefix[number][0]), key), 2)
                value = ops.concat((layer.attention.split_groups(prefix[number][1]), value), 2)
            x = layer.after(x, layer.attention(query, key, value, hidden_keys))
            kept.append(key)
            kept.append(value)
        return self.ends(ops.gather(x, last, 1)[:, 0]), kept


class OneToken(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """One token of each row of a batch, behind those in its cache: logits after it.

    Args:
        network: as in Prompt.
        layers: its parts.
        rows: of the batch.
        length: tokens of a row that the cache has room for.
        virtual_tokens: of the network's prefix, which lie before them.
    """

    def __init__(
        self, network: nn.Cell, layers: list[LlamaParts | PhiParts], rows: int, length: int, virtual_tokens: int
    ) -> None:
        super().__init__(auto_prefix=False)
        self.ends = Ends(network)
        self.virtual_tokens = virtual_tokens
        slots = virtual_tokens + length
        self.layers = nn.CellList(
            [CachedLayer(parts, rows, slots, f"cache.{rows}.{length}.{number}") for number, parts in enumerate(layers)],
            auto_prefix=False,
        )
        groups = layers[0].attention.groups
        self.shape = (rows, groups, slots)
        self.first_places = ms.Tensor(np.arange(rows * groups).reshape(rows, groups) * slots, ms.int32)
        self.slots = ms.Tensor(np.arange(slots).reshape(1, 1, 1, slots), ms.int32)

    def construct(self, tokens: ms.Tensor, positions: ms.Tensor) -> ms.Tensor:
        """int32 [rows, 1] each, to float32 [rows, vocabulary]."""
        x = self.ends.embed(tokens)
        tables = self.ends.tables(positions)
        slots = positions + self.virtual_tokens
        places = (self.first_places + slots).reshape(-1)
        hidden_keys = self.slots > slots.reshape(-1, 1, 1, 1)
        for layer in self.layers:
            x = layer(x, tables, places, hidden_keys)
        return self.ends(x[:, 0])

    def clear(self) -> None:
        """Zeros for all that lies in the cache: hidden keys have a share of 0, but 0 times NaN is NaN."""
        for layer in self.layers:
            for room in (layer.keys, layer.values):
                ops.assign(room, ops.zeros_like(room))

    def put_row(self, row: int, kept: Sequence[ms.Tensor]) -> None:
        """Put what Prompt kept at the beginning of a row's slots; outside of a graph, and in place."""
        _, groups, slots = self.shape
        first = (row * groups + np.arange(groups)) * slots
        _, _, length, width = kept[0].shape
        places = ms.Tensor((first[:, None] + np.arange(length)).reshape(-1), ms.int32)
        for layer, key, value in zip(self.layers, kept[::2], kept[1::2], strict=True):
            layer.put(layer.keys, places, key.reshape(-1, width))
            layer.put(layer.values, places, value.reshape(-1, width))
