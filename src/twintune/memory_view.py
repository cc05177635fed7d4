"""What the plan says of a run's memory and time: estimates from the recipe, the rows and the device's name."""

from typing import TYPE_CHECKING

import numpy as np

from twintune.conversation_facts import read_conversations
from twintune.hardware import known_memory
from twintune.memory import LOSS_CHUNK, MicroBatch, Training, estimate_memory, largest_micro_batch
from twintune.prepared import CONVERSATIONS
from twintune.run_cost import GIB, duration
from twintune.step_cost import device_peak, step_tokens
from twintune.throughput import Work, step_flops

if TYPE_CHECKING:
    from twintune.training_plan import Run

USABLE = 0.9  # of a device's memory: the rest is lost between tensors of different sizes
LIBRARIES = GIB  # CUDA's or CANN's own, beside the framework's tensors
ASSUMED_MFU = 0.4


def memory_lines(run: "Run") -> list[tuple[str, str]]:
    """Memory by part, the largest micro-batch that fits, and the time, as pairs of a name and a sentence."""
    memory = estimate_memory(_training(run), _micro_batch(run))
    parts = ", ".join(f"{name} {size(value)}" for name, value in vars(memory).items())
    return [
        ("memory, estimated", f"{size(memory.total)} of tensors: {parts}{_not_here(run)}"),
        ("largest micro-batch", _largest(run)),
        ("time, estimated", _time(run)),
    ]


def size(count: float) -> str:
    """Bytes in the larger of GiB and MiB in which they are not below 1."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.2f} MiB"


def estimated_memory(run: "Run") -> float:
    """Bytes of tensors at the peak of a step of the run; see twintune.memory."""
    return estimate_memory(_training(run), _micro_batch(run)).total


def _training(run: "Run") -> Training:
    job = run.job
    return Training(
        run.config,
        job.adapter,
        job.optimizer,
        job.dtype,
        job.quantization,
        job.gradient_checkpointing,
        loss_chunk=None if run.backend.value == "ascend" else LOSS_CHUNK,
        devices=job.rank.world_size,
    )


def _micro_batch(run: "Run") -> MicroBatch:
    rows = run.job.batch
    return MicroBatch(rows, run.job.row_length, rows * _logits(run))


def _logits(run: "Run") -> int:
    """Positions of a row whose logits are computed: the trained ones."""
    conversations = read_conversations(run.prepared.folder / CONVERSATIONS)
    return int(np.bincount(conversations["row"], conversations["trained_tokens"]).max())


def _not_here(run: "Run") -> str:
    if run.backend.value == "ascend" and run.device.value == "cpu":
        return "; on an NPU: MindSpore keeps more on a CPU"
    return ""


def _largest(run: "Run") -> str:
    memory, found = _device_memory(run)
    if memory is None:
        return f"not known: {found} tells no memory, set backend.device_memory_gib"
    rows = largest_micro_batch(_training(run), run.job.row_length, _logits(run), USABLE * memory - LIBRARIES)
    place = f"{memory / GIB:.0f} GiB ({found})"
    if not rows:
        remedy = "train.gradient_checkpointing, model.load_in_4bit or a lower data.cutoff_len takes less"
        return f"none: a row of {run.job.row_length} tokens does not fit {place}; {remedy}"
    return f"{rows} rows of {run.job.row_length} tokens fit {USABLE:.0%} of {place} less 1 GiB for its libraries"


def _device_memory(run: "Run") -> tuple[float | None, str]:
    """Bytes of the device's memory, and where that is known from."""
    given = run.recipe.backend.device_memory_gib
    if given is not None:
        return given * GIB, "backend.device_memory_gib"
    device = run.framework.describe_device(run.job.device)
    return device.memory or known_memory(device.name), device.name


def _time(run: "Run") -> str:
    job = run.job
    tokens, pairs = (int(counted.sum()) for counted in step_tokens(run))
    trained = round(tokens * run.prepared.summary.trained_tokens / run.prepared.summary.tokens)
    flops = step_flops(run.config, job.adapter, Work(tokens, pairs, trained), recomputed=job.gradient_checkpointing)
    peak = device_peak(run)
    if peak is None:
        return f"not known: {flops:.3g} FLOPs, on a device without a known peak (backend.device_peak_tflops)"
    return f"{duration(flops / peak / ASSUMED_MFU)}: {flops:.3g} FLOPs at {ASSUMED_MFU:.0%} of {peak / 1e12:g} TFLOP/s"
