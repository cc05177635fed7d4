"""What each step of a run costs: tokens, speed, share of the device's peak, memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Lora, PrefixTuning, Step
from twintune.conversation_facts import read_conversations
from twintune.hardware import peak_flops
from twintune.prepared import CONVERSATIONS
from twintune.run_record import process_memory
from twintune.throughput import Work, step_flops

if TYPE_CHECKING:
    from twintune.training_plan import Run


@dataclass(frozen=True)
class StepCost:
    """What a step cost, as it stands in its line of the log.

    Attributes:
        input_tokens: of all rows, trained or not, without padding.
        tokens_per_second: trained ones.
        mfu: FLOPs of the step over those that the device could have done meanwhile; None where its peak is not known.
            What is computed again for its gradient does not count (PaLM, arXiv:2204.02311, appendix B).
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
        peak: of the device, FLOP/s; None where it is not known.
        peak_memory: gives bytes.
    """

    config: Mapping[str, Any]
    adapter: Lora | PrefixTuning
    tokens: NDArray[np.int64]
    pairs: NDArray[np.int64]
    peak: float | None
    peak_memory: Callable[[], int]

    def __call__(self, step: Step) -> StepCost:
        """The cost of a step that has just ended."""
        tokens, pairs = int(self.tokens[step.step - 1]), int(self.pairs[step.step - 1])
        mfu = None
        if self.peak is not None:
            flops = step_flops(self.config, self.adapter, Work(tokens, pairs, step.tokens))
            mfu = flops / step.seconds / self.peak
        return StepCost(tokens, step.tokens / step.seconds, mfu, self.peak_memory())


def cost_meter(run: "Run") -> CostMeter:
    """What tells the cost of each step of a run."""
    device, framework = run.job.device, run.framework

    def memory() -> int:
        peak = framework.peak_memory(device)
        return process_memory() if peak is None else peak

    tokens, pairs = step_tokens(run)
    return CostMeter(run.config, run.job.adapter, tokens, pairs, device_peak(run), memory)


def step_tokens(run: "Run") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each step of a run, and pairs of tokens that see each other, int64 [steps] both; see Work."""
    conversations = read_conversations(run.prepared.folder / CONVERSATIONS)
    lengths = conversations["tokens"].astype(np.int64)
    by_row = (np.bincount(conversations["row"], counted) for counted in (lengths, lengths * (lengths + 1) // 2))
    tokens, pairs = (counted.astype(np.int64)[run.job.order].sum(axis=(1, 2)) for counted in by_row)
    return tokens, pairs


def device_peak(run: "Run") -> float | None:
    """FLOP/s of the run's devices together in its dtype: as the recipe says of one, or as known by name."""
    given = run.recipe.backend.device_peak_tflops
    if given is None:
        name = run.framework.describe_device(run.job.device).name
        known = peak_flops(name, run.job.dtype)
    else:
        known = given * 1e12
    return None if known is None else known * run.job.rank.world_size
