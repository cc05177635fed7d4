"""Keys and values of a batch that is being decoded, in memory taken once, and attention over them.

Every row has a place and its own length: its keys lie in the first slots of its place, whatever the others do.
transformers' StaticCache has one length for all rows, so that no row could end and another begin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

ATTENTION = "sdpa_over_cache"  # for transformers' AttentionInterface
Prefix = Sequence[tuple[Any, Any]]  # keys and values of each layer, [1, key heads, virtual tokens, head size]


@dataclass
class Cache:
    """Slots for the keys and values of every layer.

    Attributes:
        places: rows of the batch.
        slots: tokens of a place at most.
        layers: keys and values, [places, key heads, slots, head size], made when the first ones come.
    """

    places: int
    slots: int
    layers: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def put_first(self, layer: int, places: Any, keys: Any, values: Any) -> None:
        """Put the first tokens of some places, [len(places), key heads, tokens, head size]."""
        if layer not in self.layers:
            # Zeros, as a slot that is hidden is multiplied by 0 all the same; keys may be float32 under autocast.
            shape = (self.places, keys.shape[1], self.slots, keys.shape[3])
            self.layers[layer] = (values.new_zeros(shape), values.new_zeros(shape))
        for states, new in zip(self.layers[layer], (keys, values), strict=True):
            states[places, :, : new.shape[2]] = new.to(states.dtype)


@dataclass(frozen=True)
class WholeRows:
    """Rows from their first token on, padded on the right; causal attention never looks at the padding from a token.

    Attributes:
        prefix: stands before the first token of every row.
        cache: gets the keys and values, at `places`, int64 [rows]; None keeps them nowhere.
    """

    prefix: Prefix
    cache: Cache | None = None
    places: Any = None

    def attend(self, layer: int, query: Any, key: Any, value: Any, scaling: float) -> Any:
        """As attend_over_cache, [rows, heads, tokens, head size]."""
        if self.prefix:
            key, value = (
                torch.cat([own.expand(len(given), -1, -1, -1).to(given.dtype), given], dim=2)
                for own, given in zip(self.prefix[layer], (key, value), strict=True)
            )
        if self.cache is not None:
            self.cache.put_first(layer, self.places, key, value)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:  # not every kernel takes grouped heads
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if not self.prefix:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        tokens, virtual = query.shape[2], key.shape[2] - query.shape[2]
        mask = torch.ones(tokens, virtual + tokens, dtype=torch.bool, device=query.device).tril(virtual)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


@dataclass(frozen=True)
class NextTokens:
    """One token more for every place.

    Attributes:
        cache: gets its keys and values.
        places: 0, 1, 2 and so on, int64 [places].
        slots: where in each of them, int64 [places].
        used: slots to look at: beyond the last that any place has taken.
        visible: bool [places, 1, 1, used], slots up to a place's own; None if all of them have taken as many.
    """

    cache: Cache
    places: Any
    slots: Any
    used: int
    visible: Any

    def attend(self, layer: int, query: Any, key: Any, value: Any, scaling: float) -> Any:
        """As attend_over_cache, [places, heads, 1, head size]."""
        states = self.cache.layers[layer]
        for held, new in zip(states, (key, value), strict=True):
            held[self.places, :, self.slots] = new[:, :, 0].to(held.dtype)
        keys, values = (held[:, :, : self.used] for held in states)
        # The heads that share keys take the place of query tokens: no key is repeated.
        grouped = query.to(keys.dtype).view(len(query), keys.shape[1], -1, query.shape[3])
        output = scaled_dot_product_attention(grouped, keys, values, attn_mask=self.visible, scale=scaling)
        return output.view(query.shape)


def next_tokens(cache: Cache, lengths: NDArray[np.int64], device: str) -> NextTokens:
    """The step after `lengths` tokens of each place."""
    slots = torch.from_numpy(lengths).clamp(max=cache.slots - 1)  # a row that ended long ago is full
    used = int(slots.max()) + 1
    visible = None if bool((slots == slots[0]).all()) else (torch.arange(used) <= slots[:, None])[:, None, None]
    places = torch.arange(cache.places, device=device)
    return NextTokens(cache, places, slots.to(device), used, None if visible is None else visible.to(device))


def attend_over_cache(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: None,
    *,
    tokens: WholeRows | NextTokens,
    scaling: float,
    **others: Any,
) -> tuple[Any, None]:
    """Attention of new tokens to themselves and to what is kept, as transformers calls it.

    Args:
        module: the attention layer.
        query: [rows, heads, new tokens, head size]; key and value have as many heads or a divisor of it.
        key: see query.
        value: see query.
        attention_mask: always None, as transformers makes no mask for an attention that it does not know.
        tokens: what the new tokens are.
        scaling: of the scores.
        others: what transformers passes besides.

    Returns:
        [rows, new tokens, heads, head size], and no attention weights.
    """
    return tokens.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


def use_cache_attention(causal: Any) -> None:
    """Give a transformers model this attention; it must get `tokens` with every call from then on."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend_over_cache)
    causal.set_attn_implementation(ATTENTION)


def prefix_of(arguments: Mapping[str, Any]) -> Prefix:
    """The prefix that prefix_arguments gives for one row."""
    if not arguments:
        return ()
    return [(layer.keys, layer.values) for layer in arguments["past_key_values"].layers]
