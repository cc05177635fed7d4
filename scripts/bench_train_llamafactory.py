"""One run of LLaMA-Factory's `llamafactory-cli train` for scripts/bench_train.py: LoRA with neat packing.

    python -m scripts.bench_train_llamafactory JOB.json

It knows nothing of twintune, so that it runs in LLaMA-Factory's own environment. The token ids are given: packed by its
own knapsack, and laid down as its PackedSupervisedDatasetProcessor lays them, where `tokenized_path` reads them. Prints
one line of JSON: see Timed.
"""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from llamafactory.data.processor.processor_utils import greedy_knapsack
from llamafactory.train.tuner import run_exp

from scripts.bench_train_peer import Timed, arguments

IGNORED = -100
PAD = 0


def packed_rows(job: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
    """Rows of --length + 1 tokens, the conversations of each numbered from 1 in its attention mask."""
    found: dict[int, list[dict[str, list[int]]]] = defaultdict(list)
    for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[len(row["input_ids"])].append(row)
    lengths = [length for length, rows in found.items() for _ in rows]
    for knapsack in greedy_knapsack(lengths, job["length"]):
        packed: dict[str, list[int]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for number, length in enumerate(knapsack, start=1):
            row = found[length].pop()
            packed["input_ids"] += row["input_ids"]
            packed["attention_mask"] += [number] * length
            packed["labels"] += row["labels"]
        empty = job["length"] + 1 - len(packed["input_ids"])
        packed["input_ids"] += [PAD] * empty
        packed["attention_mask"] += [0] * empty
        packed["labels"] += [IGNORED] * empty
        yield packed


def settings(job: dict[str, Any], rows: Path) -> dict[str, Any]:
    """What stands in a LLaMA-Factory YAML."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model"],
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": job["lora_dropout"],
        "lora_target": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "template": "default",
        "dataset": "tokenized",  # must be named, and is not read: tokenized_path comes first
        "tokenized_path": str(rows),
        "cutoff_len": job["length"],
        "neat_packing": True,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": not job["gradient_checkpointing"],
        "flash_attn": "sdpa",
        **arguments(job),
    }


def main() -> None:
    """Train, and tell what it took."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = list(packed_rows(job))
    random.Random(0).shuffle(rows)  # the longest conversations, with the longest answers, are in the first
    rows = rows[: job["steps"] * job["batch"]]
    folder = Path(job["output_dir"]) / "tokenized"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder)
    timed = Timed(job["device"])
    trained = [sum(label != IGNORED for label in row["labels"][1:]) for row in rows]
    timed.tokens = [sum(trained[first : first + job["batch"]]) for first in range(0, len(rows), job["batch"])]
    run_exp(settings(job, folder), callbacks=[timed])
    print(json.dumps(timed.told()))


if __name__ == "__main__":
    main()
