"""A decided run in words, and the memory it will take."""

from collections.abc import Mapping
from typing import Any

from twintune.adapter_plan import adapter_lines, trained_numbers
from twintune.converters.names import LINEAR_MODULES, linear_shapes
from twintune.models import unused_dropouts
from twintune.optimizers import moment_names
from twintune.schedule import schedule_words
from twintune.tracking import trackers_line
from twintune.training_plan import Run, shortened

FRAMEWORK_MEMORY = "the framework's own buffers come on top, with MindSpore on CPU several GiB"


def plan_lines(run: Run) -> list[tuple[str, str]]:
    """What will run where and why, as pairs of a name and a sentence."""
    job, summary = run.job, run.prepared.summary
    steps, accumulation, batch = job.order.shape
    rows = steps * accumulation * batch
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
            f"{steps} of {batch} rows x {accumulation} micro-batches: {rows} rows, "
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
        ("memory, estimated", f"{estimated_memory(run) / 2**30:.2f} GiB of tensors; {FRAMEWORK_MEMORY}"),
        ("output", str(job.output_dir)),
    ]


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


def estimated_memory(run: Run) -> float:
    """Bytes of weights, adapter with gradients and Adam state, and one micro-batch's activations.

    Activations follow Korthikanti et al. 2022 (arXiv:2205.05198), table 2, with what a gated MLP keeps:
    for each token and layer some 10 vectors of the hidden size and 3 of the inner size, and the attention
    matrix of each head; plus the logits, their softmax and its gradient. An estimate: the framework's own
    buffers come on top.
    """
    config, job = run.config, run.job
    size = 4 if job.dtype == "float32" else 2
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    shapes = linear_shapes(config, LINEAR_MODULES)
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    linear = size if job.quantization is None else 0.5 + 4 / 64  # a code, and a share of its block's absmax
    weights = size * embeddings + linear * sum(out * width for out, width in shapes.values())
    kept = 2 + len(moment_names(job.optimizer))  # weight, gradient and the optimizer's moments, as if in float32
    adapter = 4 * kept * run.trainable_parameters
    tokens = job.order.shape[2] * job.row_length
    attention = config["num_attention_heads"] * job.row_length * size
    layer = size * (10 * hidden + 3 * inner) + attention
    # Recomputed, each layer keeps its input alone, and one layer at a time has all.
    activations = tokens * (layers * size * hidden + layer if job.gradient_checkpointing else layers * layer)
    logits = 3 * 4 * tokens * config["vocab_size"]
    return float(weights + adapter + activations + logits)
