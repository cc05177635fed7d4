"""From a recipe to a training run: everything is chosen and checked first, then one backend does the work."""

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twintune.adapter_plan import adapter_lines, check_room, count_parameters, seam_adapter, trained_numbers
from twintune.artifacts import MANIFEST, refuse_used_folder, sha256_file, write_json
from twintune.backends import Backend, Choice, choose_backend, load_backend
from twintune.backends.job import Lora, Optimizer, PrefixTuning, Quantization, TrainJob
from twintune.checkpoints import CheckpointKeeper, best_checkpoint, take_adapter
from twintune.conversation_facts import read_row_lengths
from twintune.converters.adapter import WEIGHTS, write_initial_adapter
from twintune.converters.names import LINEAR_MODULES, linear_shapes
from twintune.errors import UserError
from twintune.models import read_model_config, resolve_model, unused_dropouts
from twintune.optimizers import moment_names
from twintune.prepare import find_or_prepare
from twintune.prepared import CONVERSATIONS, Prepared
from twintune.recipe import ModelSection, Recipe
from twintune.resizing import trained_model
from twintune.resuming import write_started
from twintune.run_log import EVALUATIONS, LOG, cut_back, read_evaluations
from twintune.run_record import Chosen, RunRecord
from twintune.run_watch import watch_run
from twintune.schedule import (
    checkpoint_steps,
    evaluation_steps,
    make_schedule,
    row_order,
    schedule_words,
    step_count,
)
from twintune.tracking import require_packages

FRAMEWORK_MEMORY = "the framework's own buffers come on top, with MindSpore on CPU several GiB"
RECIPE = "recipe.yaml"
PACKAGES = ("torch", "peft", "mindspore", "mindformers", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Run:
    """A training run, fully decided.

    Attributes:
        recipe: with every override in it.
        config: the checked config.json of the model.
        prepared: the rows.
        backend, device, dtype, optimizer: what was chosen, and why.
        job: what the backend gets.
    """

    recipe: Recipe
    config: dict[str, Any]
    prepared: Prepared
    backend: Choice
    device: Choice
    dtype: Choice
    optimizer: Choice
    job: TrainJob

    @property
    def framework(self) -> Backend:
        """The chosen backend, imported."""
        return load_backend(self.backend.value)

    @property
    def trainable_parameters(self) -> int:
        """Numbers that the adapter has."""
        return count_parameters(self.job.adapter, self.config)


def decide(recipe: Recipe, output_dir: Path) -> Run:
    """Choose backend, device and dtype, check the model, prepare the rows, and lay out the run.

    Raises:
        UserError: for everything that would stop the run later.
    """
    require_packages(recipe.train.report_to)
    asked = recipe.backend
    backend = choose_backend(asked.name)
    framework = load_backend(backend.value)
    device = framework.choose_device(asked.device)
    dtype = framework.choose_dtype(asked.dtype, device.value)
    optimizer = framework.choose_optimizer(recipe.train.optim, device.value)
    adapter = seam_adapter(recipe, read_model_config(resolve_model(recipe.model)), backend.value)
    prepared = find_or_prepare(recipe)
    model = trained_model(recipe.model)
    config = read_model_config(model)
    _check_vocabulary(model, config, prepared)
    _check_evaluation(recipe, prepared)
    job = _job(recipe, model, adapter, prepared, output_dir, device.value, dtype.value)
    check_room(job, config)
    return Run(recipe, config, prepared, backend, device, dtype, optimizer, job)


def _check_vocabulary(model: Path, config: dict[str, Any], prepared: Prepared) -> None:
    largest = max(prepared.summary.largest_token_id, prepared.summary.pad_token_id)
    if largest >= config["vocab_size"]:
        raise UserError(
            f"{model}: the tokenizer's ids must be below vocab_size {config['vocab_size']}, got {largest}; "
            "set model.pad_to_multiple_of, such as 64, and the embeddings are resized to the tokenizer; or name a pad "
            "token inside the vocabulary as model.pad_token"
        )


def _job(
    recipe: Recipe,
    model: Path,
    adapter: Lora | PrefixTuning,
    prepared: Prepared,
    output_dir: Path,
    device: str,
    dtype: str,
) -> TrainJob:
    train, rows = recipe.train, prepared.summary.count
    steps = step_count(train, rows)
    evaluated = evaluation_steps(train, rows)
    lengths = read_row_lengths(prepared.folder / CONVERSATIONS) if train.group_by_length else None
    return TrainJob(
        model=model,
        rows=prepared.folder,
        order=row_order(rows, train, lengths),
        packed=prepared.summary.packed,
        row_length=_longest_row(prepared, with_validation=bool(evaluated)),
        pad_token_id=prepared.summary.pad_token_id,
        initial_adapter=output_dir / "initial_adapter",
        output_dir=output_dir,
        adapter=adapter,
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
        evaluation_steps=evaluated,
        evaluation_batch=train.per_device_eval_batch_size,
        checkpoint_steps=checkpoint_steps(train, rows),
        save_only_model=train.save_only_model,
    )


def _longest_row(prepared: Prepared, *, with_validation: bool) -> int:
    """Tokens of the longest row that the network sees; validation rows are never packed, and may be longer."""
    if not with_validation:
        return prepared.summary.row_length
    return max(
        prepared.summary.row_length, int(read_row_lengths(prepared.folder / CONVERSATIONS, validation=True).max())
    )


def _check_evaluation(recipe: Recipe, prepared: Prepared) -> None:
    train, rows = recipe.train, prepared.summary.count
    evaluated, saved = evaluation_steps(train, rows), checkpoint_steps(train, rows)
    if evaluated and not prepared.summary.validation_rows:
        raise UserError(
            "recipe: data.val_size must keep rows for validation where train.eval_steps or train.evals_per_epoch is "
            f"given, got {recipe.data.val_size} and no such row; raise data.val_size, or leave the evaluation out"
        )
    if train.load_best_model_at_end and not (saved and set(saved) <= set(evaluated)):
        raise UserError(
            "recipe: train.load_best_model_at_end must have an evaluation at each checkpoint, got checkpoints after "
            f"steps {shortened(saved)} and evaluations after steps {shortened(evaluated)}; "
            "set train.save_steps to a multiple of train.eval_steps"
        )


def shortened(steps: tuple[int, ...]) -> str:
    """The first few of some steps, and the last."""
    if not steps:
        return "none"
    return ", ".join(map(str, steps)) if len(steps) < 6 else f"{', '.join(map(str, steps[:3]))}, ..., {steps[-1]}"


def seam_quantization(model: ModelSection) -> Quantization | None:
    """How the base is quantized, None where it is not."""
    return Quantization(model.bnb_4bit_use_double_quant) if model.load_in_4bit else None


def run_training(run: Run) -> None:
    """Do a run, or the rest of one: logs, checkpoints, `adapter/`, `recipe.yaml`, `manifest.json` in its output folder.

    Raises:
        UserError: what the backend raises; the folder is removed again if no step was taken.
    """
    job = run.job
    if job.resume_from is None:
        refuse_used_folder(job.output_dir)
        job.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        if job.resume_from is None:
            _write_start(run)
        else:
            for sentence in cut_back(job.output_dir, job.steps_done):
                print(sentence, file=sys.stderr)
        losses = {one.step: one.loss for one in read_evaluations(job.output_dir / EVALUATIONS)}
        keeper = CheckpointKeeper(job.output_dir, run.recipe.train.save_total_limit, losses)
        _train(run, keeper)
        best = best_checkpoint(job.output_dir, keeper.losses)
        if run.recipe.train.load_best_model_at_end and best is not None:
            take_adapter(job.checkpoint(best), job.output_dir / "adapter")
        run.recipe.save(job.output_dir / "adapter" / RECIPE)
        _write_manifest(run, best)
    except BaseException:
        log = job.output_dir / LOG
        if not log.exists() or not log.stat().st_size:
            shutil.rmtree(job.output_dir)
        raise


def _train(run: Run, keeper: CheckpointKeeper) -> None:
    job = run.job
    if job.resume_from is not None and job.steps_done == len(job.order):  # killed after its last step
        take_adapter(job.resume_from, job.output_dir / "adapter")
        return
    chosen = Chosen(run.backend.value, run.device.value, run.dtype.value)
    with watch_run(run, RunRecord(len(job.order), chosen, plan_lines(run), versions()), [keeper]) as watcher:
        run.framework.train(job, watcher)


def _write_start(run: Run) -> None:
    job = run.job
    write_started(run)
    write_initial_adapter(job.initial_adapter, job.model, run.config, job.adapter, job.seed)
    run.recipe.save(job.initial_adapter / RECIPE)  # so that the report's answers before training are asked alike
    run.recipe.save(job.output_dir / RECIPE)


def _write_manifest(run: Run, best: int | None) -> None:
    job = run.job
    write_json(
        job.output_dir / MANIFEST,
        {
            "backend": asdict(run.backend),
            "device": asdict(run.device),
            "dtype": asdict(run.dtype),
            "optimizer": asdict(run.optimizer),
            "steps": len(job.order),
            "best_checkpoint": best,
            "adapter_is_of_the_best": run.recipe.train.load_best_model_at_end,
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
        ("base's dropout", _base_dropout(run.config)),
        ("memory, estimated", f"{estimated_memory(run) / 2**30:.2f} GiB of tensors; {FRAMEWORK_MEMORY}"),
        ("output", str(job.output_dir)),
    ]


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
    weights = size * (embeddings + sum(out * width for out, width in shapes.values()))
    kept = 2 + len(moment_names(job.optimizer))  # weight, gradient and the optimizer's moments, as if in float32
    adapter = 4 * kept * run.trainable_parameters
    tokens = job.order.shape[2] * job.row_length
    attention = config["num_attention_heads"] * job.row_length * size
    activations = tokens * layers * (size * (10 * hidden + 3 * inner) + attention)
    logits = 3 * 4 * tokens * config["vocab_size"]
    return float(weights + adapter + activations + logits)
