"""One run of a peer for scripts/bench_train.py: transformers' Trainer with PEFT, or TRL's SFTTrainer.

    python -m scripts.bench_train_peer trainer|trl JOB.json

It knows nothing of twintune, so that it runs in the peer's own environment. Padded rows come in the order of the file,
one micro-batch a step. Prints one line of JSON: see Timed.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset
from torch.utils.data import SequentialSampler

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Timed(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not read by mypy here
    """Seconds, CPU seconds, trained tokens and loss of each step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.tokens: list[int] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.losses: list[float] = []
        self._began = (0.0, 0.0)

    def counting(self, collate: Collator) -> Collator:
        """A collator that also counts the trained tokens of each batch."""

        def collate_and_count(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(rows)
            self.tokens.append(int((batch["labels"][:, 1:] != -100).sum()))
            return batch

        return collate_and_count

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clocks."""
        self._began = self._clocks()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop them."""
        seconds, cpu = self._clocks()
        self.seconds.append(seconds - self._began[0])
        self.cpu_seconds.append(cpu - self._began[1])

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Keep a step's loss."""
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def _clocks(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def told(self) -> dict[str, Any]:
        """What the benchmark reads."""
        return {
            "tokens": self.tokens[: len(self.seconds)],
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "losses": self.losses,
            "peak_bytes": peak_bytes(self.device),
        }


def peak_bytes(device: str) -> int:
    """Of tensors on a GPU, of the process on a CPU."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": job["output_dir"],
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["steps"],
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": job["device"] == "cpu",
        "dataloader_pin_memory": job["device"] == "cuda",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def lora(job: dict[str, Any]) -> Any:
    """PEFT's configuration."""
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=job["lora_dropout"], target_modules=modules, task_type="CAUSAL_LM"
    )


def in_file_order(trainer: Any) -> Any:
    """A trainer class that does not shuffle."""

    class InOrder(trainer):  # type: ignore[misc]  # as Timed
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    return InOrder


def with_trainer(job: dict[str, Any], model: Any, rows: Any, tokenizer: Any, timed: Timed) -> Any:
    """The plain script: Trainer, PEFT, DataCollatorForSeq2Seq."""
    padding = {"padding": "max_length", "max_length": job["length"]} if job["padded_to_length"] else {"padding": True}
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, **padding)
    return in_file_order(transformers.Trainer)(
        model=peft.get_peft_model(model, lora(job)),
        args=transformers.TrainingArguments(**arguments(job)),
        train_dataset=rows,
        data_collator=timed.counting(collator),
        callbacks=[timed],
    )


def with_trl(job: dict[str, Any], model: Any, rows: Any, tokenizer: Any, timed: Timed) -> Any:
    """TRL, packing; shuffled, since the longest conversations, with the longest answers, are in its first rows."""
    import trl

    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments(job), packing=True, max_length=job["length"]),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora(job),
        callbacks=[timed],
    )
    trainer.data_collator = timed.counting(trainer.data_collator)
    return trainer


def main() -> None:
    """Train, and tell what it took."""
    peer, path = sys.argv[1:]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = Dataset.from_json(job["rows"], cache_dir=job["output_dir"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    timed = Timed(job["device"])
    make = {"trainer": with_trainer, "trl": with_trl}[peer]
    make(job, model, rows, tokenizer, timed).train()
    print(json.dumps(timed.told()))


if __name__ == "__main__":
    main()
