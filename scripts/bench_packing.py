"""Trained tokens a second: rows padded to cutoff_len, rows padded as little as a backend can, and packed rows.

    python scripts/bench_packing.py [--steps 4] [--rounds 2] [--cutoff-len 2048] [--backends cuda ascend]

The same conversations three times: padded to cutoff_len as the original MindFormers job pads them; padded to the
longest of the batch (cuda) or of the data (ascend, whose graph has one shape); packed. GSM8K with the LLaMA
tokenizer where ../shared/data is, else the project's own school math with the embedded model's. A small random
LLaMA is trained through each backend as `twintune train` does; runs alternate, and the first step of each, which
compiles, does not count.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends import load_backend, missing_packages
from twintune.backends.job import Lora, Optimizer, Schedule, Step, TrainJob
from twintune.converters import arrow, mindrecord
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.converters.packing import pack_rows
from twintune.converters.records import to_conversations
from twintune.converters.rows import IGNORED, Row, make_row
from twintune.converters.templates import load_template
from twintune.converters.tokens import load_tokenizer
from twintune.models import embedded_model
from twintune.recipe_sections import LINEAR_LAYERS
from twintune.training import versions
from twintune.watchers import QuietWatcher

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
BATCH = 2  # rows of a step
CONVERSATIONS = 600
PAD = 0  # the pad's token id after renumbered()
PADDED, LONGEST, PACKED = RECIPES = ("padded to cutoff_len", "padded to the longest", "packed")


class Watch(QuietWatcher):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step) -> None:
        """Keep it."""
        self.steps.append(step)


def main() -> None:
    """Measure and print a Markdown table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, source = read_rows(folder, arguments.cutoff_len)
        jobs = make_jobs(folder, renumbered(rows), arguments)
        speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for number in range(arguments.rounds):
            for backend in arguments.backends:
                for recipe in RECIPES:
                    job = replace(jobs[backend, recipe], output_dir=folder / f"{backend} {recipe} {number}")
                    speeds[backend, recipe] += measure(backend, job)
        print_table(speeds, arguments, source)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--steps", type=int, default=4, help="measured optimizer steps of a run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each recipe on each backend")
    parser.add_argument("--cutoff-len", type=int, default=2048)
    parser.add_argument("--backends", nargs="+", choices=("cuda", "ascend"), default=["cuda", "ascend"])
    return parser.parse_args()


def read_rows(folder: Path, cutoff_len: int) -> tuple[list[Row], str]:
    """A row for each conversation, and where they come from."""
    if (SHARED / "gsm8k").is_dir():
        tokenizer = load_tokenizer(SHARED / "tokenizers" / "llama2")
        data, source = SHARED / "gsm8k" / "train.jsonl", "GSM8K, LLaMA tokenizer"
    else:
        tokenizer = load_tokenizer(embedded_model())
        maker = [sys.executable, str(ROOT / "scripts" / "make_school_math.py"), "--output-dir", str(folder)]
        subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
        data, source = folder / "train.json", "school math, embedded tokenizer"
    template = load_template("vicuna_v1.1", tokenizer)
    rows = [
        make_row(template.segments(conversation), tokenizer, template.add_special_tokens, cutoff_len)
        for conversation in to_conversations(data)[:CONVERSATIONS]
    ]
    return rows, source


def renumbered(rows: Sequence[Row]) -> list[Row]:
    """The rows with token ids from PAD + 1 without gaps: a head of 32,000 tokens would outweigh four small layers."""
    known = np.unique(np.concatenate([row.input_ids for row in rows]))

    def new(ids: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.where(ids == IGNORED, ids, np.searchsorted(known, ids) + PAD + 1).astype(np.int32)

    return [Row(new(row.input_ids), new(row.labels)) for row in rows]


def make_jobs(folder: Path, rows: Sequence[Row], arguments: argparse.Namespace) -> Mapping[tuple[str, str], TrainJob]:
    """The job of each backend and recipe, alike in everything but the rows."""
    model = save_model(folder / "model", max(int(row.input_ids.max()) for row in rows), arguments.cutoff_len)
    lora = Lora(8, 16, 0.0, LINEAR_LAYERS)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    write_adapter(folder / "initial", make_initial_adapter(config, lora, seed=0), lora, str(model))
    sets = {
        PADDED: [padded(row, arguments.cutoff_len) for row in rows],
        LONGEST: list(rows),
        PACKED: pack_rows(rows, arguments.cutoff_len),
    }
    steps = arguments.steps + 1
    jobs = {}
    for recipe, chosen in sets.items():
        place = write(folder / recipe, chosen, packed=recipe == PACKED)
        for backend in arguments.backends:
            jobs[backend, recipe] = TrainJob(
                model=model,
                rows=place,
                order=np.random.default_rng(0).integers(0, len(chosen), (steps, 1, BATCH)),
                row_length=max(len(row.input_ids) for row in chosen),
                pad_token_id=PAD,
                initial_adapter=folder / "initial",
                output_dir=folder,
                adapter=lora,
                optimizer=Optimizer(1e-4, 0.0, 0.9, 0.999, 1e-8, 1.0),
                schedule=Schedule("constant", 0, steps),
                device="cpu",
                dtype="float32",
                seed=0,
                overrides={},
                packed=recipe == PACKED,
            )
    return jobs


def save_model(folder: Path, largest_token_id: int, cutoff_len: int) -> Path:
    """A random LLaMA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=largest_token_id + 1, max_position_embeddings=cutoff_len, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def padded(row: Row, length: int) -> Row:
    """The row as llama_preprocess.py of MindFormers writes it."""
    rest = (0, length - len(row.input_ids))
    return Row(np.pad(row.input_ids, rest, constant_values=PAD), np.pad(row.labels, rest, constant_values=IGNORED))


def write(folder: Path, rows: Sequence[Row], *, packed: bool) -> Path:
    """The rows for both backends."""
    folder.mkdir()
    arrow.write_rows(rows, folder / "rows.arrow", packed=packed)
    if not missing_packages("ascend"):
        mindrecord.write_rows(rows, folder / "rows.mindrecord")
    return folder


def measure(backend: str, job: TrainJob) -> list[float]:
    """Trained tokens a second of each step but the first."""
    job.output_dir.mkdir()
    watch = Watch()
    load_backend(backend).train(job, watch)
    return [step.tokens / step.seconds for step in watch.steps[1:]]


def print_table(speeds: Mapping[tuple[str, str], list[float]], arguments: argparse.Namespace, source: str) -> None:
    """Medians, and how many times the padded recipe they are."""
    told: dict[str, Any] = versions()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{source}; LLaMA {SHAPE}, float32, {BATCH} rows of up to {arguments.cutoff_len} tokens a step;")
    print(f"{arguments.rounds} x {arguments.steps} steps, median; {os.cpu_count()} cores {platform.machine()},")
    print(f"OMP_NUM_THREADS {threads}; {', '.join(f'{name} {number}' for name, number in told.items())}\n")
    print("| backend | rows | trained tokens/s | times the padded recipe |\n|---|---|---:|---:|")
    for backend in arguments.backends:
        base = statistics.median(speeds[backend, PADDED])
        for recipe in RECIPES:
            speed = statistics.median(speeds[backend, recipe])
            print(f"| {backend} | {recipe} | {speed:,.0f} | {speed / base:.1f} |")


if __name__ == "__main__":
    main()
