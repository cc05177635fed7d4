"""The tables of docs/scaling.md: memory and time of LoRA on large models, by twintune's own formulas; nothing is run.

python scripts/make_scaling_table.py
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from twintune.adapter_plan import count_parameters
from twintune.backends.job import Lora, Optimizer, Quantization
from twintune.converters.names import base_shapes
from twintune.converters.target_modules import layers_of
from twintune.hardware import peak_flops
from twintune.markdown import markdown_table
from twintune.memory import LOSS_CHUNK, MicroBatch, Training, estimate_memory, largest_micro_batch, weight_bytes
from twintune.memory_view import ASSUMED_MFU, LIBRARIES, USABLE
from twintune.run_cost import GIB, duration
from twintune.throughput import Work, step_flops

LENGTH = 2048  # tokens of a packed row
TRAINED = LENGTH // 2
TOKENS = 100_000_000  # of a whole run
MOST_ROWS = 8  # of a micro-batch: more make the global batch of 64 devices larger than anybody's
RANK = 8
ADAMW = Optimizer(1e-4, 0.0, 0.9, 0.999, 1e-8, 1.0)


def _config(
    family: str, vocabulary: int, hidden: int, inner: int, layers: int, heads: int, groups: int
) -> dict[str, Any]:
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
    }


# As their config.json files have them.
MODELS = {
    "LLaMA-7B": _config("llama", 32000, 4096, 11008, 32, 32, 32),
    "LLaMA-13B": _config("llama", 32000, 5120, 13824, 40, 40, 40),
    "LLaMA-70B": _config("llama", 32000, 8192, 28672, 80, 64, 8),
    "Qwen2-7B": _config("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "Qwen2-72B": _config("qwen2", 152064, 8192, 29568, 80, 64, 8),
}


@dataclass(frozen=True)
class Machine:
    """A kind of device, and how it is connected.

    Attributes:
        name: as twintune.hardware knows it.
        memory: bytes.
        loss_chunk: of the backend that drives it; None: it takes all trained positions at once.
        inside, between: bytes a second that a device gets from the 7 others of its machine, and from other machines.
    """

    name: str
    memory: float
    loss_chunk: int | None
    inside: float
    between: float


MACHINES = (
    Machine("H100", 80 * GIB, LOSS_CHUNK, 200e9, 25e9),
    Machine("910B", 64 * GIB, None, 100e9, 20e9),
)


@dataclass(frozen=True)
class Split:
    """How many devices share a run, and how."""

    title: str
    devices: int = 1
    sharded: bool = False
    quantization: Quantization | None = None


SPLITS = (
    Split("1"),
    Split("1, NF4", quantization=Quantization(double_quant=False)),
    Split("8, whole", 8),
    Split("8, sharded", 8, sharded=True),
    Split("64, whole", 64),
    Split("64, sharded", 64, sharded=True),
)


def main() -> None:
    """Print the tables."""
    print("\n\n".join(tables()))


def tables() -> Iterator[str]:
    """Each table with its heading, as docs/scaling.md has it."""
    yield "### The models\n\n" + _models()
    for machine in MACHINES:
        memory = f"{machine.memory / GIB:.0f} GiB"
        yield f"### GiB on each {machine.name} ({memory}), micro-batch of one row\n\n{_memory(machine)}"
        yield f"### Largest micro-batch on each {machine.name} ({memory})\n\n{_largest(machine)}"
        yield f"### Time of {TOKENS:,} tokens on {machine.name}\n\n{_times(machine)}"


def training(config: Mapping[str, Any], machine: Machine, split: Split, *, recomputed: bool = True) -> Training:
    """LoRA on all linear layers of a model, in bfloat16 with AdamW."""
    return Training(
        config,
        Lora(RANK, 16, 0.0, layers_of(config)),
        ADAMW,
        "bfloat16",
        split.quantization,
        recomputed,
        machine.loss_chunk,
        split.devices,
        split.sharded,
    )


def _room(machine: Machine) -> float:
    return USABLE * machine.memory - LIBRARIES


def _fitting(config: Mapping[str, Any], machine: Machine, split: Split, *, recomputed: bool = True) -> int:
    setting = training(config, machine, split, recomputed=recomputed)
    return largest_micro_batch(setting, LENGTH, TRAINED, _room(machine))


def _models() -> str:
    rows = []
    for name, config in MODELS.items():
        setting = training(config, MACHINES[0], SPLITS[0])
        parameters = sum(map(prod, base_shapes(config).values()))
        flops = step_flops(config, setting.adapter, _work(1)) / LENGTH
        rows.append(
            (
                name,
                f"{parameters / 1e9:.2f}",
                f"{count_parameters(setting.adapter, config) / 1e6:.1f}",
                f"{weight_bytes(setting) / GIB:.1f}",
                f"{flops / 1e9:.1f}",
                f"{flops / 1e9 / (parameters / 1e9):.2f}",
            )
        )
    headers = ("model", "billion weights", "million trained", "GiB in bfloat16", "GFLOPs a token", "a weight and token")
    return markdown_table(headers, rows)


def _work(rows: int) -> Work:
    return Work(rows * LENGTH, rows * LENGTH * (LENGTH + 1) // 2, rows * TRAINED)


def _memory(machine: Machine) -> str:
    rows = []
    for name, config in MODELS.items():
        cells = []
        for split in SPLITS:
            batch = MicroBatch(1, LENGTH, TRAINED)
            total = estimate_memory(training(config, machine, split), batch).total
            cells.append(f"{total / GIB:.1f}{'' if total <= _room(machine) else ' (too much)'}")
        rows.append((name, *cells))
    return markdown_table(("model", *(split.title for split in SPLITS)), rows)


def _largest(machine: Machine) -> str:
    rows = []
    for name, config in MODELS.items():
        cells = []
        for split in SPLITS:
            again, kept = (_fitting(config, machine, split, recomputed=recomputed) for recomputed in (True, False))
            cells.append(f"{again} / {kept}" if again else "none")
        rows.append((name, *cells))
    return markdown_table(("model", *(split.title for split in SPLITS)), rows)


def _times(machine: Machine) -> str:
    splits = [split for split in SPLITS if split.quantization is None]
    rows = [(name, *(_time(config, machine, split) for split in splits)) for name, config in MODELS.items()]
    return markdown_table(("model", *(split.title for split in splits)), rows)


def _time(config: Mapping[str, Any], machine: Machine, split: Split) -> str:
    """The longer of computing and fetching weights, with the largest micro-batch that fits, up to MOST_ROWS."""
    rows = min(MOST_ROWS, _fitting(config, machine, split))
    if not rows:
        return "does not fit"
    setting = training(config, machine, split)
    peak = peak_flops(machine.name, setting.dtype)
    if peak is None:
        raise ValueError(f"the peak of {machine.name} must be known")
    computed = step_flops(config, setting.adapter, _work(rows), recomputed=True) / (ASSUMED_MFU * peak)
    fetched = _fetched(setting) / (machine.inside if split.devices <= 8 else machine.between)
    steps = TOKENS / (rows * LENGTH * split.devices)
    told = duration(steps * max(computed, fetched))
    return f"{told} (fetching)" if fetched > computed else told


def _fetched(setting: Training) -> float:
    """Bytes that a device gets from others for a micro-batch: weights forward, and backward with the forward again."""
    others = (setting.devices - 1) / setting.devices
    return 2 * others * weight_bytes(setting) if setting.sharded else 0.0


if __name__ == "__main__":
    main()
