"""A decided run in words."""

from collections.abc import Mapping
from typing import Any

from twintune.adapter_plan import adapter_lines, trained_numbers
from twintune.backends.job import TrainJob
from twintune.memory_view import memory_lines
from twintune.models import unused_dropouts
from twintune.schedule import schedule_words
from twintune.tracking import trackers_line
from twintune.training_plan import Run, shortened


def plan_lines(run: Run) -> list[tuple[str, str]]:
    """What will run where and why, as pairs of a name and a sentence."""
    job, summary = run.job, run.prepared.summary
    steps, accumulation, _ = job.order.shape
    rows = job.order.size
    return [
        ("backend", f"{run.backend.value} ({run.backend.reason})"),
        ("device", f"{run.device.value} ({run.device.reason})"),
        ("dtype", f"{run.dtype.value} ({run.dtype.reason}); {trained_numbers(job.adapter)} in float32"),
        ("model", f"{job.model} ({run.config['model_type']}, {run.config['num_hidden_layers']} layers)"),
        ("rows", f"{summary.count} in {run.prepared.folder}, longest {summary.row_length} tokens, {_cut(run)}"),
        ("packing", _packing(run)),
        ("trained tokens", f"{summary.trained_tokens} of {summary.tokens} an epoch"),
        ("pad token", f"{summary.pad_token.value!r} ({summary.pad_token.reason})"),
        (
            "steps",
            f"{steps} of {job.batch} rows x {accumulation} micro-batches{_devices(job)}: {rows} rows, "
            f"{rows / summary.count:.2f} epochs; {job.schedule.warmup_steps} warm-up steps",
        ),
        ("optimizer", f"{run.optimizer.value} ({run.optimizer.reason})"),
        ("schedule", schedule_words(job.schedule)),
        *adapter_lines(run.recipe, job.adapter, run.trainable_parameters),
        ("base weights", _base_weights(run)),
        ("base's dropout", _base_dropout(run.config)),
        ("activations", "computed again for the gradient of each layer" if job.gradient_checkpointing else "kept"),
        ("evaluation", f"{summary.validation_rows} rows after steps: {shortened(job.evaluation_steps)}"),
        ("checkpoints", f"after steps: {shortened(job.checkpoint_steps)}{_kept(run)}"),
        ("trackers", trackers_line(run.recipe.train.report_to)),
        *memory_lines(run),
        ("output", str(job.output_dir)),
    ]


def _devices(job: TrainJob) -> str:
    if job.rank.world_size == 1:
        return ""
    shared = " that shard the frozen base" if job.parallel.sharded else ""
    if job.parallel.zero_stage:
        shared = f" in stage {job.parallel.zero_stage} of DeepSpeed's ZeRO"
    if job.data_parallel < job.rank.world_size:
        parallel = job.parallel
        shared = f" in groups of {parallel.model_parallel} model parallel x {parallel.pipeline_stage} pipeline stages"
    return f" x {job.data_parallel} (on {job.rank.world_size} devices{shared})"


def _base_weights(run: Run) -> str:
    quantization = run.job.quantization
    if quantization is None:
        return f"frozen, in {run.dtype.value}"
    twice = ", their scales in 8 bits" if quantization.double_quant else ""
    return f"frozen, the decoder's linear layers in 4 bits (NF4{twice}), the rest in {run.dtype.value}"


def _kept(run: Run) -> str:
    train = run.recipe.train
    kept = "" if train.save_total_limit is None else f"; at most {train.save_total_limit} stay, the best and the newest"
    return f"{kept}{'; the adapter alone, none to resume from' if train.save_only_model else ''}"


def _base_dropout(config: Mapping[str, Any]) -> str:
    named = ", ".join(f"{key} {value}" for key, value in unused_dropouts(config).items())
    return f"left out on both backends ({named} in config.json)" if named else "none"


def _packing(run: Run) -> str:
    summary = run.prepared.summary
    if summary.packed:
        return f"{summary.conversations} conversations in these rows, none sees another"
    grouped = "; rows of like length share a batch" if run.recipe.train.group_by_length else ""
    return f"none, a row holds one conversation (data.packing: true trains on less padding){grouped}"


def _cut(run: Run) -> str:
    return f"{run.prepared.summary.cut_rows} cut at data.cutoff_len {run.recipe.data.cutoff_len}"
