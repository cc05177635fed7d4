"""How much a training step computes, by formula, and what share of the device's peak that is.

FLOPs are those of the mathematics: two for a weight and token, as Kaplan et al. 2020 (arXiv:2001.08361) count them, no
padding, logits where a token is trained, attention below the diagonal. MFU is theirs over the peak's, as Chowdhery et
al. 2022 (PaLM, arXiv:2204.02311, appendix B) define it: what is computed again for its gradient does not count. Frozen
weights need no gradient, so that a step of LoRA is two thirds of one that trains them: 4 FLOPs and not 6.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Lora, PrefixTuning, Step
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


@dataclass(frozen=True)
class StepCost:
    """What a step cost, as it stands in its line of the log.

    Attributes:
        input_tokens: of all rows, trained or not, without padding.
        tokens_per_second: trained ones.
        mfu: FLOPs over what the device could have done meanwhile; None where its peak is not known.
        peak_memory: bytes of the device at most so far, on a CPU of the process.
    """

    input_tokens: int
    tokens_per_second: float
    mfu: float | None
    peak_memory: int


@dataclass(frozen=True)
class CostMeter:
    """Tells what a step cost.

    Attributes:
        config: the model's checked config.json.
        adapter: what is trained.
        tokens: of each step of the run, int64 [steps]; see Work.
        pairs: of each step of the run, int64 [steps].
        peak_flops: of the device, FLOP/s; None where it is not known.
        peak_memory: gives bytes.
    """

    config: Mapping[str, Any]
    adapter: Lora | PrefixTuning
    tokens: NDArray[np.int64]
    pairs: NDArray[np.int64]
    peak_flops: float | None
    peak_memory: Callable[[], int]

    def __call__(self, step: Step) -> StepCost:
        """The cost of a step that has just ended."""
        tokens, pairs = int(self.tokens[step.step - 1]), int(self.pairs[step.step - 1])
        flops = step_flops(self.config, self.adapter, Work(tokens, pairs, step.tokens))
        mfu = None if self.peak_flops is None else flops / step.seconds / self.peak_flops
        return StepCost(tokens, step.tokens / step.seconds, mfu, self.peak_memory())
