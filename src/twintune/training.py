"""From a recipe to a training run: everything is chosen and checked first, then one backend does the work."""

import math
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twintune.artifacts import MANIFEST, refuse_used_folder, sha256_file, write_json
from twintune.backends import (
    Backend,
    Choice,
    Lora,
    Optimizer,
    Quantization,
    TrainJob,
    choose_backend,
    load_backend,
)
from twintune.conversation_facts import read_row_lengths
from twintune.converters.adapter import WEIGHTS, write_initial_adapter
from twintune.converters.names import linear_shapes
from twintune.errors import UserError
from twintune.models import read_model_config, resolve_model
from twintune.prepare import find_or_prepare
from twintune.prepared import CONVERSATIONS, Prepared
from twintune.progress import Progress
from twintune.recipe import LoraSection, ModelSection, Recipe
from twintune.run_log import LOG, RunLog
from twintune.schedule import make_schedule, row_order, step_count
from twintune.watchers import Watchers

FRAMEWORK_MEMORY = "the framework's own buffers come on top, with MindSpore on CPU several GiB"
PACKAGES = ("torch", "peft", "mindspore", "mindformers", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Run:
    """A training run, fully decided.

    Attributes:
        recipe: with every override in it.
        config: the checked config.json of the model.
        prepared: the rows.
        backend, device, dtype: what was chosen, and why.
        job: what the backend gets.
    """

    recipe: Recipe
    config: dict[str, Any]
    prepared: Prepared
    backend: Choice
    device: Choice
    dtype: Choice
    job: TrainJob

    @property
    def framework(self) -> Backend:
        """The chosen backend, imported."""
        return load_backend(self.backend.value)

    @property
    def trainable_parameters(self) -> int:
        """Numbers in the LoRA matrices: r * (in + out) for each target."""
        shapes = linear_shapes(self.config, self.recipe.lora.target_modules)
        return sum(self.recipe.lora.r * (out + inner) for out, inner in shapes.values())


def decide(recipe: Recipe, output_dir: Path) -> Run:
    """Choose backend, device and dtype, check the model, prepare the rows, and lay out the run.

    Raises:
        UserError: for everything that would stop the run later.
    """
    asked = recipe.backend
    backend = choose_backend(asked.name)
    framework = load_backend(backend.value)
    device = framework.choose_device(asked.device)
    dtype = framework.choose_dtype(asked.dtype, device.value)
    model = resolve_model(recipe.model)
    config = read_model_config(model)
    prepared = find_or_prepare(recipe)
    _check_vocabulary(model, config, prepared)
    job = _job(recipe, model, prepared, output_dir, device.value, dtype.value)
    return Run(recipe, config, prepared, backend, device, dtype, job)


def _check_vocabulary(model: Path, config: dict[str, Any], prepared: Prepared) -> None:
    largest = max(prepared.summary.largest_token_id, prepared.summary.pad_token_id)
    if largest >= config["vocab_size"]:
        raise UserError(
            f"{model}: the tokenizer's ids must be below vocab_size {config['vocab_size']}, got {largest}; "
            "name a pad token inside the vocabulary as model.pad_token, or use the model's own tokenizer"
        )


def _job(recipe: Recipe, model: Path, prepared: Prepared, output_dir: Path, device: str, dtype: str) -> TrainJob:
    train = recipe.train
    steps = step_count(train, prepared.summary.count)
    lengths = read_row_lengths(prepared.folder / CONVERSATIONS) if train.group_by_length else None
    return TrainJob(
        model=model,
        rows=prepared.folder,
        order=row_order(prepared.summary.count, train, lengths),
        packed=prepared.summary.packed,
        row_length=prepared.summary.row_length,
        pad_token_id=prepared.summary.pad_token_id,
        initial_adapter=output_dir / "initial_adapter",
        output_dir=output_dir,
        lora=seam_lora(recipe.lora),
        optimizer=Optimizer(
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            adam_beta1=train.adam_beta1,
            adam_beta2=train.adam_beta2,
            adam_epsilon=train.adam_epsilon,
            max_grad_norm=train.max_grad_norm,
            optim=train.optim,
            sgd_momentum=train.sgd_momentum,
        ),
        schedule=make_schedule(train, steps),
        device=device,
        dtype=dtype,
        seed=train.seed,
        overrides=recipe.backend.ascend.overrides,
        quantization=seam_quantization(recipe.model),
        gradient_checkpointing=train.gradient_checkpointing,
    )


def seam_lora(lora: LoraSection) -> Lora:
    """The adapter in plain arguments: use_rslora becomes the lora_alpha with which lora_alpha / r is its scale."""
    alpha = lora.lora_alpha * math.sqrt(lora.r) if lora.use_rslora else lora.lora_alpha
    return Lora(lora.r, alpha, lora.lora_dropout, lora.target_modules, lora.modules_to_save)


def seam_quantization(model: ModelSection) -> Quantization | None:
    """How the base is quantized, None where it is not."""
    return Quantization(model.bnb_4bit_use_double_quant) if model.load_in_4bit else None


def run_training(run: Run) -> None:
    """Do a run: `log.jsonl`, `adapter/`, `recipe.yaml` and `manifest.json` in its output folder.

    Raises:
        UserError: what the backend raises; the folder is removed again if no step was taken.
    """
    output_dir = run.job.output_dir
    refuse_used_folder(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    log = output_dir / LOG
    try:
        _write_start(run)
        with Progress(len(run.job.order)) as progress, RunLog(output_dir) as run_log:
            run.framework.train(run.job, Watchers([run_log, progress]))
        run.recipe.save(output_dir / "adapter" / "recipe.yaml")
        _write_manifest(run)
    except BaseException:
        if not log.exists() or not log.stat().st_size:
            shutil.rmtree(output_dir)
        raise


def _write_start(run: Run) -> None:
    job = run.job
    write_initial_adapter(job.initial_adapter, job.model, run.config, job.lora, job.seed)
    run.recipe.save(job.output_dir / "recipe.yaml")


def _write_manifest(run: Run) -> None:
    job = run.job
    write_json(
        job.output_dir / MANIFEST,
        {
            "backend": asdict(run.backend),
            "device": asdict(run.device),
            "dtype": asdict(run.dtype),
            "steps": len(job.order),
            "rows_fingerprint": run.prepared.summary.fingerprint,
            "initial_adapter_sha256": sha256_file(job.initial_adapter / WEIGHTS),
            "adapter_sha256": sha256_file(job.output_dir / "adapter" / WEIGHTS),
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """Python and the packages that decide numbers, as installed; without those that are not."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def plan_lines(run: Run) -> list[tuple[str, str]]:
    """What will run where and why, as pairs of a name and a sentence."""
    job, summary = run.job, run.prepared.summary
    steps, accumulation, batch = job.order.shape
    rows = steps * accumulation * batch
    return [
        ("backend", f"{run.backend.value} ({run.backend.reason})"),
        ("device", f"{run.device.value} ({run.device.reason})"),
        ("dtype", f"{run.dtype.value} ({run.dtype.reason}); LoRA matrices in float32"),
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
        ("trainable parameters", f"{run.trainable_parameters:,} (LoRA r {job.lora.r})"),
        ("dropout", _dropout(job)),
        ("memory, estimated", f"{estimated_memory(run) / 2**30:.2f} GiB of tensors; {FRAMEWORK_MEMORY}"),
        ("output", str(job.output_dir)),
    ]


def _dropout(job: TrainJob) -> str:
    if not job.lora.lora_dropout:
        return "none: both backends compute the same"
    return (
        f"{job.lora.lora_dropout}: each backend draws its own, so that losses agree in the mean only; "
        "MindSpore's graph mode does not repeat its draws for a seed"
    )


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
    shapes = linear_shapes(config, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    weights = size * (embeddings + sum(out * width for out, width in shapes.values()))
    adapter = 16 * run.trainable_parameters  # weight, gradient and two Adam moments in float32
    tokens = job.order.shape[2] * job.row_length
    attention = config["num_attention_heads"] * job.row_length * size
    activations = tokens * layers * (size * (10 * hidden + 3 * inner) + attention)
    logits = 3 * 4 * tokens * config["vocab_size"]
    return float(weights + adapter + activations + logits)
