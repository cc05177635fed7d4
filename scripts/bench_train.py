"""Training beside its peers: trained tokens a second and memory of the same rows, model and LoRA.

    python -m scripts.bench_train --peer-python PYTHON --llamafactory-python PYTHON --ascend [--rounds 3] [--steps 4]
    python -m scripts.bench_train --device cuda --dtype bfloat16 --shape qwen2-1.5b --length 1024 ...

The first PYTHON is the interpreter of an environment with transformers, PEFT and TRL, which may be this one, the second
of one with LLaMA-Factory. Beside twintune, padded and packed, run the plain script (transformers' Trainer, PEFT,
DataCollatorForSeq2Seq) with rows padded to --length and to the longest of the batch, TRL's SFTTrainer with packing, and
LLaMA-Factory with its neat packing; with --ascend, on the CPU, twintune on MindSpore and stock MindFormers, whose rows
are padded to --length. Conversations are those of bench_packing.py, token ids are made once for all, the weights are
random. Every run is a process; runs alternate; the first step of each does not count. Packed micro-batches have as many
rows as hold the tokens of a padded one. Where others share the machine, CPU seconds of the process tell more than the
clock.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench_packing import read_rows, renumbered
from twintune.backends.job import Lora
from twintune.converters import arrow, mindrecord
from twintune.converters.adapter import write_initial_adapter
from twintune.converters.packing import pack_rows
from twintune.converters.rows import Row
from twintune.models import read_model_config
from twintune.recipe_sections import LINEAR_LAYERS

ROOT = Path(__file__).resolve().parents[1]
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "vocab_size": 32000,
    },
    "qwen2-1.5b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
OURS, PEER, LLAMAFACTORY, MINDFORMERS = (
    ("-m", f"scripts.bench_train_{name}") for name in ("twintune", "peer", "llamafactory", "mindformers")
)


@dataclass(frozen=True)
class Contender:
    """One line of the table: a script with its arguments, in an environment."""

    name: str
    command: tuple[str, ...]
    job: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What one run took, its first step left out.

    Attributes:
        speed: trained tokens a second.
        cpu_speed: trained tokens a CPU second.
        peak: bytes.
        loss: of the first step.
    """

    speed: float
    cpu_speed: float
    peak: int
    loss: float


def main() -> None:
    """Measure and print a Markdown table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders, source = prepare(folder, arguments)
        runs: dict[str, list[Measured]] = defaultdict(list)
        for number in range(arguments.rounds):
            for contender in contenders:
                runs[contender.name].append(measure(contender, folder / f"{contender.name} {number}"))
                print(contender.name, runs[contender.name][-1], file=sys.stderr)
        print_table(runs, arguments, source)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--peer-python", action="append", default=[], help="an interpreter that has the peers")
    parser.add_argument("--llamafactory-python", action="append", default=[], help="an interpreter that has it")
    parser.add_argument("--ascend", action="store_true", help="MindSpore on the CPU too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a packed row, and of a padded one at most")
    parser.add_argument("--batch", type=int, default=4, help="conversations of a padded micro-batch")
    parser.add_argument("--lora-dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=4, help="measured optimizer steps of a run")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def prepare(folder: Path, arguments: argparse.Namespace) -> tuple[list[Contender], str]:
    """Write model, adapter and rows once; the contenders, and where the rows come from."""
    found, source = read_rows(folder, arguments.length)
    rows = [row for row in renumbered(found) if row.trained_tokens]  # so that any tokenizer's ids fit the model
    tokens = sum(len(row.input_ids) for row in rows) / len(rows)
    packed_batch = max(1, round(arguments.batch * tokens / arguments.length))
    job: dict[str, Any] = {
        "model": str(save_model(folder / "model", SHAPES[arguments.shape], arguments.length)),
        "adapter": str(folder / "initial"),
        "rows": str(write_json_rows(folder / "rows.jsonl", rows)),
        "steps": arguments.steps + 1,
        "length": arguments.length,
        "batch": arguments.batch,
        "backend": "cuda",
        "device": arguments.device,
        "dtype": arguments.dtype,
        "lora_dropout": arguments.lora_dropout,
        "packed": False,
        "gradient_checkpointing": False,
        "padded_to_length": False,
    }
    adapter = Lora(8, 16, arguments.lora_dropout, LINEAR_LAYERS)
    write_initial_adapter(folder / "initial", Path(job["model"]), read_model_config(Path(job["model"])), adapter, 0)
    job["folder"] = str(write_rows(folder / "padded", rows, arguments))
    packed = job | {"packed": True, "batch": packed_batch}
    packed["folder"] = str(write_rows(folder / "packed", pack_rows(rows, arguments.length), arguments, packed=True))
    recomputed = packed | {"gradient_checkpointing": True}
    ours = (sys.executable, *OURS)
    contenders = [
        Contender("twintune, packed", ours, packed),
        Contender("twintune, padded to the longest", ours, job),
        Contender("twintune, packed, train.gradient_checkpointing", ours, recomputed),
    ]
    if arguments.ascend:
        on_mindspore = {"backend": "ascend", "device": "cpu", "dtype": "float32"}
        contenders += [
            Contender("twintune on MindSpore, packed", ours, packed | on_mindspore),
            Contender("twintune on MindSpore, padded to --length", ours, job | on_mindspore),
            Contender("stock MindFormers, padded to --length", (sys.executable, *MINDFORMERS), job | on_mindspore),
        ]
    for python in arguments.peer_python:
        versions = environment(python, "transformers", "peft", "trl")
        trainer, trl = (python, *PEER, "trainer"), (python, *PEER, "trl")
        contenders += [
            Contender(f"Trainer, padded to the longest ({versions})", trainer, job),
            Contender(f"Trainer, padded to --length ({versions})", trainer, job | {"padded_to_length": True}),
            Contender(f"TRL, packed ({versions})", trl, packed),
        ]
    for python in arguments.llamafactory_python:
        versions = environment(python, "llamafactory", "transformers", "peft")
        contenders.append(Contender(f"LLaMA-Factory, packed ({versions})", (python, *LLAMAFACTORY), packed))
    return contenders, source


def write_rows(folder: Path, rows: Sequence[Row], arguments: argparse.Namespace, *, packed: bool = False) -> Path:
    """The rows for twintune's backends."""
    folder.mkdir()
    arrow.write_rows(rows, folder / "rows.arrow", packed=packed)
    if arguments.ascend:
        mindrecord.write_rows(list(rows), folder / "rows.mindrecord")
    return folder


def environment(python: str, *names: str) -> str:
    """The versions of an interpreter's packages."""
    code = "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
    told = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout.split()
    return ", ".join(f"{name} {number}" for name, number in zip(names, told, strict=True))


def save_model(folder: Path, shape: Mapping[str, Any], length: int) -> Path:
    """Random weights, and a tokenizer that can do no more than pad."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape, max_position_embeddings=length)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))  # noqa: S106  no password
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<unk>", eos_token="</s>").save_pretrained(folder)  # noqa: S106
    return folder


def write_json_rows(path: Path, rows: Sequence[Row]) -> Path:
    """The rows for the peers."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps({"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}) + "\n")
    return path


def measure(contender: Contender, folder: Path) -> Measured:
    """Run a contender once, in a process of its own."""
    folder.mkdir()
    path = folder / "job.json"
    path.write_text(json.dumps({**contender.job, "output_dir": str(folder)}), encoding="utf-8")
    ended = subprocess.run([*contender.command, str(path)], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{contender.name}:\n{ended.stdout}\n{ended.stderr}")
    told = json.loads(ended.stdout.splitlines()[-1])
    tokens = sum(told["tokens"][1:])
    return Measured(
        tokens / sum(told["seconds"][1:]),
        tokens / sum(told["cpu_seconds"][1:]),
        told["peak_bytes"],
        told["losses"][0],
    )


def print_table(runs: Mapping[str, list[Measured]], arguments: argparse.Namespace, source: str) -> None:
    """Medians, and what twintune's packed rows make of each."""
    medians = {
        name: {key: statistics.median(getattr(run, key) for run in found) for key in vars(found[0])}
        for name, found in runs.items()
    }
    best = next(iter(medians.values()))
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{source}; {SHAPES[arguments.shape]}, {arguments.device}, {arguments.dtype};")
    print(f"{arguments.rounds} x {arguments.steps} steps, --length {arguments.length}, --batch {arguments.batch};")
    print(f"{os.cpu_count()} cores {platform.machine()}, OMP_NUM_THREADS {threads}\n")
    print("| | trained tokens/s | twintune packed: times | by CPU seconds: times | peak memory, MiB | first loss |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, found in medians.items():
        times, by_cpu = best["speed"] / found["speed"], best["cpu_speed"] / found["cpu_speed"]
        figures = f"{found['speed']:,.0f} | {times:.2f} | {by_cpu:.2f} | {found['peak'] / 2**20:,.0f}"
        print(f"| {name} | {figures} | {found['loss']:.4f} |")


if __name__ == "__main__":
    main()
