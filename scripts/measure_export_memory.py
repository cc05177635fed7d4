"""How much memory `twintune export weights` takes, each way, beside the largest shard: one JSON line.

    python scripts/measure_export_memory.py [--megabytes 200] [--shard-megabytes 20]

A random LLaMA in float32 is written in shards, exported to a MindFormers .ckpt and safetensors, and each of them
back, each time in a new process that has imported everything before. Peaks are the kernel's own (VmHWM of
/proc/self/status, set back before the export): Linux only.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open  # noqa: F401  imported before, so that it does not count

from twintune.converters.checkpoint_export import FileFormat, export_weights
from twintune.converters.names import base_shapes
from twintune.converters.sharded import plan_shards, write_index, write_sharded
from twintune.converters.stored_tensors import TensorSpec

HIDDEN, INNER, VOCABULARY = 512, 1408, 8192
EXPORTS: dict[str, tuple[str, str, FileFormat, str | None]] = {
    "huggingface to ckpt": ("model", "ckpt", "ckpt", None),
    "huggingface to safetensors": ("model", "safetensors", "safetensors", None),
    "ckpt to huggingface": ("ckpt/model.ckpt", "first", "huggingface", None),
    "safetensors to huggingface": ("safetensors", "second", "huggingface", None),
    "huggingface to ckpt in bfloat16": ("model", "half", "ckpt", "bfloat16"),
}
LAYER_BYTES = 4 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200, help="of weights, about")
    parser.add_argument("--shard-megabytes", type=int, default=20)
    arguments = parser.parse_args()
    shard = f"{arguments.shard_megabytes}MB"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = write_model(folder / "model", max(1, arguments.megabytes * 10**6 // LAYER_BYTES), shard)
        told["growth_bytes"] = {title: in_new_process(folder, *export, shard) for title, export in EXPORTS.items()}
    print(json.dumps(told))


def write_model(folder: Path, layers: int, shard: str) -> dict[str, Any]:
    """A random LLaMA of this many layers; returns its sizes in bytes."""
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    specs = {name: TensorSpec(np.dtype(np.float32), shape) for name, shape in base_shapes(config).items()}
    size = int(shard.removesuffix("MB")) * 10**6
    write_index(folder, write_sharded(folder, random_tensors(specs), specs, size, {"format": "pt"}), specs)
    shards = [sum(specs[name].nbytes for name in names) for names in plan_shards(specs, size)]
    return {
        "model_bytes": sum(shards),
        "largest_shard_bytes": max(shards),
        "largest_tensor_bytes": max(spec.nbytes for spec in specs.values()),
        "shards": len(shards),
    }


def random_tensors(specs: dict[str, TensorSpec]) -> Iterator[tuple[str, NDArray[Any]]]:
    """One tensor after another."""
    draw = np.random.default_rng(0)
    for name, spec in specs.items():
        yield name, draw.random(spec.shape, np.float32)


def in_new_process(
    folder: Path, source: str, output: str, file_format: FileFormat, dtype: str | None, shard: str
) -> int:
    """The growth of an export in a process of its own, where no freed memory is lying about."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(growth, (folder, source, output, file_format, dtype, shard))


def growth(folder: Path, source: str, output: str, file_format: FileFormat, dtype: str | None, shard: str) -> int:
    """Bytes by which an export raised the peak of memory in use over what was in use before."""
    model = folder / "model" if file_format == "huggingface" else None
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use
    before = memory("VmRSS")
    export_weights(folder / source, folder / output, file_format, model=model, dtype=dtype, max_shard_size=shard)
    return memory("VmHWM") - before


def memory(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
