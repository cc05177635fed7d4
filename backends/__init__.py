"""The seam between the front end and a framework: what a backend must do, and the only switch.

The front end knows nothing of a backend but this file. Recipes stop here: a backend gets plain
arguments (TrainJob), NumPy arrays and paths.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from twintune.errors import UserError

Name = Literal["cuda", "ascend"]
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
FRAMEWORK = {"cuda": ("torch", "peft"), "ascend": ("mindspore", "mindformers")}


@dataclass(frozen=True)
class Choice:
    """Something chosen once, with the reason that is printed beside it."""

    value: str
    reason: str


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

    double_quant: bool
    block_size: int = 64


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
class TrainJob:
    """One training run in plain arguments, the same for every backend.

    Attributes:
        model: Hugging Face folder with config.json and safetensors.
        rows: prepared folder with rows.arrow and/or rows.mindrecord.
        order: row numbers in the order of training, int64 [max_steps, accumulation, batch].
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


@dataclass(frozen=True)
class Forward:
    """What a network computed for one row, before anything is trained.

    Attributes:
        logits: float32 [length, vocabulary].
        hidden: float32 [length, hidden size] by stage: `embed_tokens`, `layers.0` and so on (each layer's
            output), `norm`.
    """

    logits: NDArray[np.float32]
    hidden: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class StepGradients:
    """Losses and gradients of one optimizer step's rows, as training computes them, dropout included.

    Attributes:
        loss: mean over the trained tokens of all micro-batches.
        tokens: how many those are.
        row_losses: each row's own sum over its trained tokens, float64 [accumulation, batch].
        row_tokens: each row's trained tokens as the backend counts them, int64 [accumulation, batch].
        gradients: of `loss` before clipping, float32 by PEFT name.
    """

    loss: float
    tokens: int
    row_losses: NDArray[np.float64]
    row_tokens: NDArray[np.int64]
    gradients: dict[str, NDArray[np.float32]]


class Probe(Protocol):
    """A job's network opened for measuring: what training would compute with, and nothing is trained.

    The network is built once; weights are put in and taken out as float32 under Hugging Face and PEFT names.
    """

    def base(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every base weight as it lies in the network, by Hugging Face name, one at a time."""

    def put_base(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Replace base weights, merged ones for instance. Raises UserError for unknown names and shapes."""

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """Every LoRA matrix as it lies in the network, by PEFT name."""

    def put_adapter(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace all LoRA matrices. Raises UserError for missing, unknown and misshapen ones."""

    def forward(self, rows: Sequence[Sequence[int]]) -> list[Forward]:
        """Logits and hidden states of unpacked rows, in evaluation mode, none longer than the job's rows."""

    def gradients(self, numbers: NDArray[np.int64]) -> StepGradients:
        """Of the job's rows with these numbers, int64 [accumulation, batch] as in job.order, in training mode."""


class LanguageModel(Protocol):
    """A loaded model that gives logits; the front end samples (twintune.generation)."""

    def logits(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Logits of every position, one [length, vocabulary] array a row."""

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin decoding a batch; logits after the last token of each prompt, [prompts, vocabulary]."""

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every row; logits after it, [prompts, vocabulary]."""


class Backend(Protocol):
    """What a framework must do for the front end."""

    name: Name

    def choose_device(self, asked: str) -> Choice:
        """`auto` or a device name to a device that is there. Raises UserError if it is not."""

    def choose_dtype(self, asked: str, device: str) -> Choice:
        """`auto` or a dtype name to one this backend computes in there. Raises UserError if it cannot."""

    def choose_optimizer(self, asked: OptimizerName, device: str) -> Choice:
        """The class that does what `train.optim` asks there. Raises UserError if it has none."""

    def plan(self, job: TrainJob) -> dict[str, str]:
        """What the framework would be given, as texts by file name, for --dry-run."""

    def train(self, job: TrainJob, watcher: Watcher) -> None:
        """Train and write `adapter/` (PEFT format) into job.output_dir."""

    def load_model(
        self,
        model: Path,
        adapter: Path | None,
        *,
        pad_token_id: int,
        device: str,
        dtype: str,
        quantization: Quantization | None = None,
    ) -> LanguageModel:
        """Load a Hugging Face folder, with a PEFT adapter on it or none, its linear layers quantized or not."""

    def learning_rates(self, job: TrainJob) -> NDArray[np.float64]:
        """What the framework would take at each step of the whole schedule, float64 [max_steps]."""

    def open_probe(self, job: TrainJob) -> Probe:
        """The network of a job with its initial adapter on it."""

    def peak_memory(self, device: str) -> int | None:
        """Bytes that the framework took on a device at most so far; None on a CPU, where the process' own count."""


def missing_packages(name: Name) -> list[str]:
    """The packages of a backend that are not installed, without importing any."""
    return [package for package in FRAMEWORK[name] if find_spec(package) is None]


def choose_backend(asked: str) -> Choice:
    """`auto` to the backend whose framework is installed (cuda first, as it runs everywhere).

    Raises:
        UserError: if the asked one is unknown or not installed, or none is.
    """
    names: tuple[Name, ...] = ("cuda", "ascend")
    if asked not in (*names, "auto"):
        raise UserError(f"--backend must be auto, {' or '.join(names)}, got {asked!r}")
    if asked != "auto":
        name: Name = "cuda" if asked == "cuda" else "ascend"
        if missing := missing_packages(name):
            raise UserError(
                f"--backend {asked} must have its packages installed, got no {', '.join(missing)}; "
                f"run: pip install 'twintune[{asked}]'"
            )
        return Choice(asked, "as asked")
    installed = [name for name in names if not missing_packages(name)]
    if not installed:
        raise UserError(
            "--backend auto must find torch and peft, or mindspore and mindformers, got neither; "
            "run: pip install 'twintune[cuda]' or 'twintune[ascend]'"
        )
    if len(installed) == 2 and has_npu():
        return Choice("ascend", "both are installed and an NPU is here")
    both = len(installed) == 2
    reason = "both are installed and no NPU is here" if both else "only its packages are installed"
    return Choice(installed[0], reason)


def has_npu() -> bool:
    """Whether an NPU's device file and CANN are here; MindSpore refuses Ascend without either."""
    return any(Path("/dev").glob("davinci[0-9]*")) and "ASCEND_HOME_PATH" in os.environ


def load_backend(name: str) -> Backend:
    """Import one backend and its framework."""
    if name == "cuda":
        from twintune.backends.cuda import CudaBackend

        return CudaBackend()
    from twintune.backends.ascend import AscendBackend

    return AscendBackend()
