"""A training run in plain arguments, the same for every backend, and what is told of it while it goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

OptimizerName = Literal[
    "adamw_torch", "adam_weight_decay", "sgd", "lion_32bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"
]
ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "constant",
    "constant_with_warmup",
]


@dataclass(frozen=True)
class Lora:
    """The adapter's shape and strength: W + lora_alpha / r * B A.

    Attributes:
        modules_to_save: `embed_tokens` and `lm_head` if they are trained whole beside the matrices.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrefixTuning:
    """Keys and values before every layer's first token (Liu et al. 2022, P-tuning v2, arXiv:2110.07602).

    Attributes:
        encoder_hidden_size: of the network that makes them of one embedding; None trains them as they are.
        num_layers: of the model.
        num_attention_heads: that a layer has keys and values for.
        token_dim: numbers in the keys of one token and layer, over all of its heads.
    """

    num_virtual_tokens: int
    encoder_hidden_size: int | None
    num_layers: int
    num_attention_heads: int
    token_dim: int


@dataclass(frozen=True)
class Quantization:
    """The decoder's frozen linear layers as NF4 codes, as bitsandbytes keeps them (Dettmers et al. 2023)."""

    double_quant: bool  # whether the scales of the blocks are kept in 8 bits


@dataclass(frozen=True)
class Optimizer:
    """How gradients move the weights: see twintune.optimizers for the formula of each name."""

    learning_rate: float  # the schedule's peak
    weight_decay: float
    adam_beta1: float  # of Lion too
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float  # global norm over all trained parameters, clipped before the update
    optim: OptimizerName = "adamw_torch"
    sgd_momentum: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The learning rate by optimizer step: see twintune.schedule.learning_rates for the formula.

    Attributes:
        lr_scheduler_kwargs: the numbers of that type, all of them: see twintune.schedule_settings.
    """

    lr_scheduler_type: ScheduleName
    warmup_steps: int
    max_steps: int
    lr_scheduler_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One optimizer step as it is logged."""

    step: int  # from 1
    loss: float  # mean over the trained tokens of the whole optimizer step
    grad_norm: float  # before clipping
    learning_rate: float
    tokens: int  # trained tokens
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The loss on the validation rows after an optimizer step; 0 is before the first."""

    step: int
    loss: float  # mean over their trained tokens
    tokens: int  # trained tokens
    seconds: float

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite above float64's range."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Rank:
    """A process among those that train one run together, counted as torch.distributed and MPI do.

    Attributes:
        number: of the process among all, from 0; rank 0 alone writes the run folder.
        world_size: processes in all, one for each device.
        local: number of the process among those of its machine, and so of its device.
    """

    number: int = 0
    world_size: int = 1
    local: int = 0


@dataclass(frozen=True)
class Parallel:
    """What the devices of a run share besides its rows.

    Attributes:
        sharded: whether each keeps a share of the frozen base's weights alone (cuda).
        zero_stage: of DeepSpeed's ZeRO; 0 is without it (cuda).
        model_parallel: devices that share each layer (ascend).
        pipeline_stage: groups of devices that have some layers each (ascend).
    """

    sharded: bool = False
    zero_stage: int = 0
    model_parallel: int = 1
    pipeline_stage: int = 1


@dataclass(frozen=True)
class TrainJob:
    """One training run in plain arguments, the same for every backend.

    Attributes:
        model: Hugging Face folder with config.json and safetensors.
        rows: prepared folder with rows.arrow and/or rows.mindrecord.
        order: row numbers in the order of training, for all ranks, int64 [max_steps, accumulation, all their rows].
        row_length: tokens of the longest row; a fixed-shape backend pads to it (or a little above).
        initial_adapter: PEFT folder; both backends start from these very numbers.
        output_dir: where the backend writes `adapter/` and what its framework leaves.
        adapter: what is trained.
        seed: for what only the backend draws (dropout).
        overrides: framework keys laid over what the backend generates; empty for cuda.
        packed: whether rows hold several conversations, of which none may see another.
        snapshot_steps: steps after which the adapter is also written, to output_dir/snapshots/step-N.
        quantization: of the base's frozen linear layers; None keeps them in `dtype`.
        gradient_checkpointing: whether a layer's activations are computed again for its gradient.
        evaluation_steps: steps after which the validation rows are evaluated (validation.arrow, .mindrecord in `rows`).
        evaluation_batch: rows evaluated together.
        checkpoint_steps: steps after which a checkpoint is written, to `checkpoint(step)`; after the evaluation.
        save_only_model: whether checkpoints leave out what resuming needs.
        resume_from: the checkpoint to go on from; None begins with the initial adapter.
        steps_done: optimizer steps that `resume_from` has behind it.
        parallel: what the devices share besides rows.
        use_liger_kernel: whether norms and gated networks are Liger's (cuda, on a GPU).
        rank: of this process; `output_dir` is the run folder for rank 0, a temporary one for the others.
    """

    model: Path
    rows: Path
    order: NDArray[np.int64]
    row_length: int
    pad_token_id: int
    initial_adapter: Path
    output_dir: Path
    adapter: Lora | PrefixTuning
    optimizer: Optimizer
    schedule: Schedule
    device: str
    dtype: str
    seed: int
    overrides: dict[str, Any]
    packed: bool = False
    snapshot_steps: tuple[int, ...] = ()
    quantization: Quantization | None = None
    gradient_checkpointing: bool = False
    evaluation_steps: tuple[int, ...] = ()
    evaluation_batch: int = 1
    checkpoint_steps: tuple[int, ...] = ()
    save_only_model: bool = False
    resume_from: Path | None = None
    steps_done: int = 0
    rank: Rank = Rank()
    parallel: Parallel = Parallel()
    use_liger_kernel: bool = False

    @property
    def data_parallel(self) -> int:
        """Devices, or groups that share a model, among which rows are dealt."""
        return self.rank.world_size // (self.parallel.model_parallel * self.parallel.pipeline_stage)

    @property
    def batch(self) -> int:
        """Rows of a micro-batch on one device."""
        return self.order.shape[2] // self.data_parallel

    @property
    def own_order(self) -> NDArray[np.int64]:
        """The rows that this rank trains on, int64 [max_steps, accumulation, batch]."""
        order: NDArray[np.int64] = self.order[self._own]
        return order

    @property
    def _own(self) -> tuple[Any, ...]:
        first = self.rank.number * self.batch
        return ..., slice(first, first + self.batch)

    @property
    def own_places(self) -> NDArray[np.int64]:
        """Where these rows stand in the whole run, from 0, int64 [max_steps, accumulation, batch]."""
        places: NDArray[np.int64] = np.arange(self.order.size).reshape(self.order.shape)[self._own]
        return places

    @property
    def lora(self) -> Lora:
        """The adapter where nothing but LoRA can be. Raises TypeError for another one."""
        if not isinstance(self.adapter, Lora):
            raise TypeError(f"the adapter must be LoRA here, got {self.adapter}")
        return self.adapter

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after a step."""
        return self.output_dir / f"checkpoint-{step}"

    def snapshot(self, step: int) -> Path:
        """The folder of the adapter after a step."""
        return self.output_dir / "snapshots" / f"step-{step}"


class Watcher(Protocol):
    """What a backend tells the front end while it trains."""

    def status(self, text: str) -> None:
        """A phase that takes long began (loading, compiling)."""

    def step(self, step: Step) -> None:
        """One optimizer step ended."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The validation rows were evaluated."""

    def saved(self, step: int) -> None:
        """The checkpoint after a step is whole."""
