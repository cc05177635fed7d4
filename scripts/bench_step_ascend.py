"""Seconds of an optimizer step on MindSpore's CPU: stock MindFormers and twintune, the same configuration.

    python scripts/bench_step_ascend.py [--layers 30] [--batch 2] [--length 128] [--prompt 32] [--rounds 10]

A random LLaMA of SmolLM2-135M's shape with LoRA on all linear layers, in float32. MindFormers' own Trainer builds and
compiles both step cells: its MFTrainOneStepCell, whose overflow check is replaced since it needs NPU operators, and
twintune's. Their steps then alternate on the same rows in one process; the step that compiles does not count. CPU
seconds are those of all threads, and tell more than the clock where the machine is shared.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from twintune.artifacts import write_yaml
from twintune.backends.ascend.data import ordered_dataset
from twintune.backends.ascend.profile import training_config
from twintune.backends.ascend.runtime import import_quietly, start
from twintune.backends.job import Lora, Optimizer, Schedule, TrainJob
from twintune.converters import mindrecord
from twintune.converters.base_checkpoint import base_checkpoint
from twintune.converters.rows import IGNORED, Row
from twintune.models import read_model_config
from twintune.recipe_sections import LINEAR_LAYERS
from twintune.training import versions

SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
VOCABULARY = 49152
STOCK, OURS = "stock MindFormers", "twintune"


def main() -> None:
    """Measure and print a Markdown table."""
    arguments = parse_arguments()
    import_quietly()
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), arguments)
        steps = {STOCK: compiled_step(job, stock_config(job)), OURS: compiled_step(job, training_config(job, "cpu"))}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(arguments.rounds):
            for name, step in steps.items():
                seconds[name].append(measure(step))
    print_table(seconds, arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2, help="rows of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row, a multiple of 16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a row, its first ones, that are not trained")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps of each")
    return parser.parse_args()


def make_job(folder: Path, arguments: argparse.Namespace) -> TrainJob:
    """Two steps on random rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=arguments.layers, tie_word_embeddings=True, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(arguments.batch):
        ids = draw.integers(1, VOCABULARY, arguments.length).astype(np.int32)
        labels = ids.copy()
        labels[: arguments.prompt] = IGNORED
        rows.append(Row(ids, labels))
    (folder / "rows").mkdir()
    mindrecord.write_rows(rows, folder / "rows" / "rows.mindrecord")
    return TrainJob(
        model=folder / "model",
        rows=folder / "rows",
        order=np.tile(np.arange(arguments.batch), (2, 1, 1)),
        row_length=arguments.length,
        pad_token_id=0,
        initial_adapter=folder,
        output_dir=folder,
        adapter=Lora(8, 16, 0.0, LINEAR_LAYERS),
        optimizer=Optimizer(1e-4, 0.0, 0.9, 0.999, 1e-8, 1.0),
        schedule=Schedule("constant", 0, 1000),
        device="cpu",
        dtype="float32",
        seed=0,
        overrides={},
    )


def stock_config(job: TrainJob) -> dict[str, Any]:
    """The same configuration, with MindFormers' own step cell and its mean loss."""
    register_step_for_cpu()
    wrapper = {"type": "StepForCPU", "scale_sense": 1.0, "use_clip_grad": True, "max_grad_norm": 1.0}
    return training_config(job, "cpu") | {"runner_wrapper": wrapper, "calculate_per_token_loss": False}


def register_step_for_cpu() -> None:
    """Register MindFormers' step cell with an overflow check that CPU has operators for."""
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindformers.wrapper.wrapper import MFTrainOneStepCell
    from mindspore import ops

    @MindFormerRegister.register(MindFormerModuleType.WRAPPER)
    class StepForCPU(MFTrainOneStepCell):  # type: ignore[misc]  # mindformers ships no types
        def start_overflow_check(self, pre_cond: Any, compute_input: Any) -> tuple[Any, Any]:
            return None, compute_input

        def get_overflow_status(self, status: Any, compute_output: Any) -> Any:
            total = 0.0
            for gradient in compute_output:
                total = total + ops.reduce_sum(gradient)
            return ops.logical_not(ops.isfinite(total))


def compiled_step(job: TrainJob, settings: Mapping[str, Any]) -> Callable[[], Any]:
    """The step cell that MindFormers' Trainer compiles of a configuration, on the rows of the job."""
    import mindspore as ms

    import twintune.backends.ascend.step  # noqa: F401  registers the step cell with MindFormers
    from twintune.backends.ascend.trained_positions import most_trained, put_on_trained_positions

    cells = []

    class Keep(ms.Callback):  # type: ignore[misc]  # mindspore ships no types
        def on_train_begin(self, run_context: Any) -> None:
            gradients = getattr(run_context.original_args().train_network, "gradients", None)
            if gradients:  # twintune's own step cell, as twintune.backends.ascend.train makes it
                gradients.network = put_on_trained_positions(job, gradients.network, most_trained(job))

        def on_train_step_end(self, run_context: Any) -> None:
            cells.append(run_context.original_args().train_network)

    dataset = finetune(job, settings, Keep())
    rows = [ms.Tensor(column) for column in next(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))]
    return lambda: [value.asnumpy() for value in cells[-1](*rows)[:1]]


def finetune(job: TrainJob, settings: Mapping[str, Any], callback: Any) -> Any:
    """Run MindFormers' own Trainer on a configuration and the rows of a job; its data set."""
    from mindformers import Trainer

    base = base_checkpoint(job.model, read_model_config(job.model), job.dtype, None)
    write_yaml(job.output_dir / "mindformers.yaml", dict(settings))
    config = start(job.output_dir / "mindformers.yaml")
    dataset = ordered_dataset(job.rows / "rows.mindrecord", job.order, job.row_length, job.pad_token_id)
    with redirect_stdout(StringIO()):
        trainer = Trainer(args=config, task="text_generation", train_dataset=dataset, callbacks=[callback])
        trainer.finetune(finetune_checkpoint=str(base))
    return dataset


def measure(step: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of all threads."""
    began, began_cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - began, time.process_time() - began_cpu


def print_table(seconds: Mapping[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> None:
    """Medians, and how many times stock MindFormers' they are."""
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"LLaMA {json.dumps(SHAPE)}, {arguments.layers} layers, vocabulary {VOCABULARY}, float32, LoRA r 8 on all;")
    print(f"{arguments.batch} rows of {arguments.length} tokens, {arguments.prompt} of each not trained;")
    print(f"median of {arguments.rounds}, alternating;")
    print(f"{os.cpu_count()} cores {platform.machine()}, OMP_NUM_THREADS {threads};")
    print(", ".join(f"{name} {number}" for name, number in versions().items()) + "\n")
    print("| step of | seconds | CPU seconds | times stock | times stock, CPU |\n|---|---:|---:|---:|---:|")
    medians = {
        name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in seconds.items()
    }
    for name, (clock, cpu) in medians.items():
        ratios = clock / medians[STOCK][0], cpu / medians[STOCK][1]
        print(f"| {name} | {clock:.3f} | {cpu:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
