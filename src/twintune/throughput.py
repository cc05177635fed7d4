"""How much a training step computes, by formula.

FLOPs are those of the mathematics: two for a weight and token, as Kaplan et al. 2020 (arXiv:2001.08361) count them; no
padding, logits where a token is trained, attention on and below the diagonal. Frozen weights need no gradient: 4 FLOPs
for forward and backward where a trained weight has 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from twintune.backends.job import Lora, PrefixTuning
from twintune.converters.names import LINEAR_MODULES, head_dim, linear_shapes


@dataclass(frozen=True)
class Work:
    """What goes through the network in a step.

    Attributes:
        tokens: of all rows, without padding.
        pairs: of a token and one that it sees, itself included, over all conversations.
        trained: tokens that the loss counts.
    """

    tokens: int
    pairs: int
    trained: int


def step_flops(
    config: Mapping[str, Any], adapter: Lora | PrefixTuning, work: Work, *, recomputed: bool = False
) -> float:
    """FLOPs of forward and backward.

    A prefix's own network is left out: it computes nothing for a token.

    Args:
        config: the model's checked config.json.
        adapter: what is trained.
        work: of the step.
        recomputed: whether the layers' forward is counted twice, as gradient checkpointing has it.
    """
    pairs = work.pairs
    if isinstance(adapter, PrefixTuning):
        pairs += work.tokens * adapter.num_virtual_tokens
    frozen, trained = _numbers_of_layers(config, adapter)
    # Two products forward, of queries with keys and of scores with values; four backward.
    attention = 4 * config["num_hidden_layers"] * config["num_attention_heads"] * head_dim(config) * pairs
    forward = 2 * (frozen + trained) * work.tokens + attention
    backward = (2 * frozen + 4 * trained) * work.tokens + 2 * attention
    head = _head_flops(config, adapter) * work.trained
    return float(forward * (2 if recomputed else 1) + backward + head)


def _numbers_of_layers(config: Mapping[str, Any], adapter: Lora | PrefixTuning) -> tuple[int, int]:
    """Weights of the decoder's linear layers, and of the LoRA matrices on them."""
    frozen = sum(map(prod, linear_shapes(config, LINEAR_MODULES).values()))
    if isinstance(adapter, PrefixTuning):
        return frozen, 0
    return frozen, adapter.r * sum(map(sum, linear_shapes(config, adapter.target_modules).values()))


def _head_flops(config: Mapping[str, Any], adapter: Lora | PrefixTuning) -> int:
    """Forward and backward of the head for a trained token; a third more where the head is trained."""
    whole = isinstance(adapter, Lora) and "lm_head" in adapter.modules_to_save
    return int((6 if whole else 4) * config["vocab_size"] * config["hidden_size"])
