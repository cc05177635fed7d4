"""The memory model of twintune.memory beside what PyTorch takes on a CPU: a Markdown table.

    python scripts/measure_memory.py [CASE...]

Random models are trained for two steps, each in a new process. `tensors` is the most that PyTorch's allocator had at a
time, by torch.profiler, with the weights; `process` how far the process grew (VmHWM of /proc/self/status over what was
in use after all imports: Linux only), which has the allocator's and MKL's own buffers too.
"""

import argparse
import gc
import multiprocessing
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from twintune.backends.job import Lora, Optimizer, Quantization, Schedule, Step, TrainJob
from twintune.converters import arrow
from twintune.converters.adapter import write_initial_adapter
from twintune.converters.rows import Row
from twintune.markdown import markdown_table
from twintune.memory import MicroBatch, Training, estimate_memory
from twintune.models import read_model_config
from twintune.watchers import QuietWatcher

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ADAMW = Optimizer(1e-3, 0.0, 0.9, 0.999, 1e-8, 1.0)
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    """A random model and how it is trained.

    Attributes:
        config: keys of config.json, over CONFIG.
        rows, length: of the micro-batch.
        trained: share of each row's tokens.
        targets: of LoRA, of rank 8.
        job: fields of TrainJob.
    """

    config: dict[str, Any] = field(default_factory=dict)
    rows: int = 2
    length: int = 128
    trained: float = 0.5
    targets: tuple[str, ...] = ATTENTION
    job: dict[str, Any] = field(default_factory=dict)


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
PHI: dict[str, Any] = {"model_type": "phi", "num_key_value_heads": 8, "partial_rotary_factor": 0.5}
AGAIN = {"gradient_checkpointing": True}
CASES = {
    "LLaMA, 4 layers of LoRA": Case(),
    "8 rows": Case(rows=8),
    "rows of 512 tokens": Case(length=512),
    "rows of 512, recomputed": Case(length=512, job=AGAIN),
    "7 layers of LoRA": Case(targets=LINEAR, rows=4),
    "vocabulary of 65,536, 4 rows": Case({"vocab_size": 65536}, rows=4),
    "the same, recomputed": Case({"vocab_size": 65536}, rows=4, job=AGAIN),
    "one token in ten trained": Case(trained=0.1, rows=4),
    "NF4": Case(rows=4, job={"quantization": Quantization(double_quant=False)}),
    "NF4, recomputed": Case(rows=4, job={"quantization": Quantization(double_quant=False)} | AGAIN),
    "bfloat16": Case(length=64, job={"dtype": "bfloat16"}),
    "SGD": Case(job={"optimizer": replace(ADAMW, optim="sgd")}),
    "Qwen2, tied head": Case({"model_type": "qwen2", "tie_word_embeddings": True}, rows=4),
    "Phi": Case(PHI, targets=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), rows=4),
}


def main() -> None:
    """Measure the cases that are asked for, all without any, and print each line as it is known."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE", help=", ".join(CASES))
    print(markdown_table(("case", "model, MiB", "tensors", "process", "model / tensors", "model / process"), []))
    for name in parser.parse_args().cases or CASES:
        print(f"| {name} | {' | '.join(figures(CASES[name]))} |", flush=True)


def figures(case: Case) -> tuple[str, ...]:
    """The cells of a case."""
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(case, Path(folder))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            process, tensors = pool.apply(measure, (job,))
        model = estimate(case, job)
    sizes = (f"{value / MEBIBYTE:,.1f}" for value in (model, tensors, process))
    return (*sizes, f"{model / tensors:.2f}", f"{model / process:.2f}")


def make_job(case: Case, folder: Path) -> TrainJob:
    """Write a model, rows and an adapter, and the job of two steps on them."""
    model = folder / "model"
    write_model(model, CONFIG | case.config)
    config = read_model_config(model)
    lora = Lora(8, 16, 0.0, case.targets)
    write_initial_adapter(folder / "initial", model, config, lora, seed=0)
    arrow.write_rows(make_rows(case, config["vocab_size"]), folder / "rows.arrow")
    fields: dict[str, Any] = {"optimizer": ADAMW, "dtype": "float32"} | case.job
    return TrainJob(
        model=model,
        rows=folder,
        order=np.stack([np.arange(case.rows)[None]] * 2),
        row_length=case.length,
        pad_token_id=0,
        initial_adapter=folder / "initial",
        output_dir=folder / "run",
        adapter=lora,
        schedule=Schedule("constant", 0, 2),
        device="cpu",
        seed=0,
        overrides={},
        **fields,
    )


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A random model of transformers in float32."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    settings = transformers.AutoConfig.for_model(**config)
    transformers.AutoModelForCausalLM.from_config(settings).float().save_pretrained(folder)


def make_rows(case: Case, vocabulary: int) -> list[Row]:
    """Random rows whose last tokens are trained."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(case.rows):
        ids = draw.integers(1, vocabulary, case.length, dtype=np.int32)
        labels = np.where(np.arange(case.length) < case.length - trained(case), -100, ids).astype(np.int32)
        rows.append(Row(ids, labels))
    return rows


def trained(case: Case) -> int:
    """Trained tokens of a row."""
    return round(case.trained * case.length)


def estimate(case: Case, job: TrainJob) -> float:
    """Bytes by the model."""
    config = read_model_config(job.model)
    training = Training(config, job.adapter, job.optimizer, job.dtype, job.quantization, job.gradient_checkpointing)
    return estimate_memory(training, MicroBatch(case.rows, case.length, case.rows * trained(case))).total


def measure(job: TrainJob) -> tuple[int, int]:
    """Bytes by which the process grew, and bytes of tensors, at the peak of a run."""
    import bitsandbytes  # noqa: F401  imported before, so that it does not count
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.phi.modeling_phi
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    from twintune.backends.cuda.train import train

    warnings.simplefilter("ignore")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use
    before = process_memory("VmRSS")
    train(job, QuietWatcher())
    process = process_memory("VmHWM") - before
    return process, peak_of_tensors(replace(job, output_dir=job.output_dir.with_name("again")))


def peak_of_tensors(job: TrainJob) -> int:
    """Bytes that the tensors of a run of two steps had at most, by PyTorch's own record of its allocations."""
    from twintune.backends.cuda.train import train

    others = bytes_of_tensors()
    watcher = SecondStep()
    train(job, watcher)
    return watcher.before - others + watcher.growth


class SecondStep(QuietWatcher):
    """A Watcher that measures the second step, when the optimizer has its moments.

    Attributes:
        before: bytes of tensors between the steps.
        growth: bytes on top of them at the peak.
    """

    def __init__(self) -> None:
        import torch

        self.before = self.growth = 0
        cpu = torch.profiler.ProfilerActivity.CPU
        self.profiler = torch.profiler.profile(activities=[cpu], profile_memory=True)

    def step(self, step: Step) -> None:
        """Begin after the first step, and end after the second."""
        if step.step == 1:
            self.before = bytes_of_tensors()
            self.profiler.start()
            return
        self.profiler.stop()
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        self.growth = int(np.cumsum(changes).max())


def bytes_of_tensors() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    import torch

    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return int(sum(storages.values()))


def process_memory(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
