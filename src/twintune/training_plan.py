"""From a recipe to a training run that is fully decided: everything is chosen and checked before any work."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twintune.adapter_plan import check_room, count_parameters, seam_adapter
from twintune.backends import Backend, Choice, choose_backend, load_backend
from twintune.backends.job import Lora, Optimizer, PrefixTuning, Quantization, Rank, TrainJob
from twintune.conversation_facts import read_row_lengths
from twintune.errors import UserError
from twintune.liger import choose_liger
from twintune.models import read_model_config, resolve_model
from twintune.parallel_plan import choose_parallel
from twintune.prepare import find_or_prepare
from twintune.prepared import CONVERSATIONS, Prepared
from twintune.recipe import Recipe
from twintune.recipe_sections import ModelSection, TrainSection
from twintune.resizing import trained_model
from twintune.schedule import (
    checkpoint_steps,
    evaluation_steps,
    make_schedule,
    row_order,
    step_count,
)
from twintune.tracking import choose_trackers


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


def decide(recipe: Recipe, output_dir: Path, rank: Rank | None = None) -> Run:
    """Choose backend, device and dtype, check the model, prepare the rows, and lay out the run.

    Args:
        recipe: with every override in it.
        output_dir: the run folder.
        rank: of this process; None is alone.

    Raises:
        UserError: for everything that would stop the run later.
    """
    choose_trackers(recipe.train.report_to)
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
    rank = rank or Rank()
    parallel = choose_parallel(recipe, backend.value, rank.world_size)
    train = on_one_device(recipe.train, rank.world_size // (parallel.model_parallel * parallel.pipeline_stage))
    _check_evaluation(recipe, train, prepared)
    job = _job(recipe, train, model, adapter, prepared, output_dir, device.value, dtype.value)
    liger = choose_liger(recipe, backend.value, device.value, config)
    job = replace(job, rank=rank, parallel=parallel, use_liger_kernel=liger)
    check_room(job, config)
    return Run(recipe, config, prepared, backend, device, dtype, optimizer, job)


def on_one_device(train: TrainSection, devices: int) -> TrainSection:
    """The batch of one device that takes the rows of several: it decides steps, order and rhythm."""
    return train.model_copy(update={"per_device_train_batch_size": devices * train.per_device_train_batch_size})


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
    train: TrainSection,
    model: Path,
    adapter: Lora | PrefixTuning,
    prepared: Prepared,
    output_dir: Path,
    device: str,
    dtype: str,
) -> TrainJob:
    rows = prepared.summary.count
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


def _check_evaluation(recipe: Recipe, train: TrainSection, prepared: Prepared) -> None:
    rows = prepared.summary.count
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
