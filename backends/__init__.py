"""The seam between the front end and a framework: what a backend must do, and the only switch.

The front end knows nothing of a backend but this file and job.py. Recipes stop here: a backend gets plain
arguments (TrainJob), NumPy arrays and paths.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import OptimizerName, Quantization, Rank, TrainJob, Watcher
from twintune.errors import UserError

Name = Literal["cuda", "ascend"]
FRAMEWORK = {"cuda": ("torch", "peft"), "ascend": ("mindspore", "mindformers")}


@dataclass(frozen=True)
class Choice:
    """Something chosen once, with the reason that is printed beside it."""

    value: str
    reason: str


@dataclass(frozen=True)
class Device:
    """What is found of a device.

    Attributes:
        name: as its driver says.
        memory: bytes in all; None on a CPU, whose memory others use too.
    """

    name: str
    memory: int | None


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
        """Append one token to every row; logits after it, [prompts, vocabulary].

        Rows that ended go on with the others, beyond max_new_tokens too: nobody reads what they give.
        """

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Put prompts, none longer than the longest of `start`, at the places of rows that ended.

        Returns:
            logits after the last token of each of these prompts, [len(places), vocabulary]; the batch goes on with
            `step` as if they had been there from the start, each with max_new_tokens to come.
        """


@dataclass(frozen=True)
class Machines:
    """How many processes a launcher starts, and where.

    Attributes:
        nproc: processes on each machine.
        nnodes: machines.
        node_rank: number of this one.
        host, port: where the first one is reached.
    """

    nproc: int
    nnodes: int
    node_rank: int
    host: str
    port: int


class Group(Protocol):
    """The processes that train one run, of which each calls the same methods in the same order."""

    def exchange(self, text: str) -> list[str]:
        """What every rank gives, by rank, once the last one has. Raises UserError if one has ended."""


class Backend(Protocol):
    """What a framework must do for the front end."""

    name: Name

    def choose_device(self, asked: str) -> Choice:
        """`auto` or a device name to a device that is there. Raises UserError if it is not."""

    def describe_device(self, device: str) -> Device:
        """What is found of a device that choose_device gave."""

    def choose_dtype(self, asked: str, device: str) -> Choice:
        """`auto` or a dtype name to one this backend computes in there. Raises UserError if it cannot."""

    def choose_optimizer(self, asked: OptimizerName, device: str) -> Choice:
        """The class that does what `train.optim` asks there. Raises UserError if it has none."""

    def choose_cache(self, asked: str, model: Path, adapter: Path | None, device: str, dtype: str) -> Choice:
        """What keys and values lie in while a model decodes: `auto`, `static` or `paged` to one of the latter.

        Raises UserError if it cannot be had for these.
        """

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
        cache_implementation: str = "static",
    ) -> LanguageModel:
        """Load a Hugging Face folder, with a PEFT adapter on it or none, its linear layers quantized or not."""

    def learning_rates(self, job: TrainJob) -> NDArray[np.float64]:
        """What the framework would take at each step of the whole schedule, float64 [max_steps]."""

    def open_probe(self, job: TrainJob) -> Probe:
        """The network of a job with its initial adapter on it."""

    def join(self, rank: Rank) -> Group:
        """Meet the other ranks at MASTER_ADDR and MASTER_PORT. Raises UserError naming those that do not come."""

    def launch(self, command: Sequence[str], machines: Machines) -> None:
        """Run a command of Python's as many processes, until the last ends or the first fails.

        Raises:
            UserError: if the port is in use, or a process was ended by a signal.
            SystemExit: with the exit code of the first process that failed, which has said why.
        """

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
