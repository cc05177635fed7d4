"""MindFormers' configuration for devices that share a model: its semi-auto parallel mode, which needs NPUs.

twintune writes it and holds it against MindFormers' own classes, and has never trained by it: MindSpore's CPU backend
refuses that mode. The step cell is MindFormers' own there, since it cuts the step into pipeline stages.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from twintune.backends.job import TrainJob
from twintune.errors import UserError, raise_collected
from twintune.models import read_model_config
from twintune.trees import laid_over


def shares_a_model(job: TrainJob) -> bool:
    """Whether devices share layers or a pipeline, and not only rows."""
    return job.data_parallel < job.rank.world_size


def require_whole_models(job: TrainJob) -> None:
    """Raise UserError if devices share a model."""
    if shares_a_model(job):
        raise UserError(
            "recipe: backend.ascend.model_parallel and pipeline_stage must be 1 to train, got "
            f"{job.parallel.model_parallel} and {job.parallel.pipeline_stage}: MindSpore has that mode on NPUs alone, "
            "where twintune has not run it; use data parallel, or give MindFormers what --dry-run prints"
        )


def on_many_devices(config: dict[str, Any], job: TrainJob) -> dict[str, Any]:
    """A configuration of one device as it is for all of a job's.

    Raises:
        UserError: for heads, layers or micro-batches that the devices cannot share.
    """
    if job.rank.world_size == 1:
        return config
    if not shares_a_model(job):
        return laid_over(config, {"runner_wrapper": {"world_size": job.rank.world_size}})
    return laid_over(config | {"runner_wrapper": {}}, _semi_auto(job))  # another cell has other arguments


def _semi_auto(job: TrainJob) -> dict[str, Any]:
    raise_collected(f"recipe: {problem}" for problem in _problems(job, read_model_config(job.model)))
    accumulation, stages = job.order.shape[1], job.parallel.pipeline_stage
    return {
        "use_parallel": True,
        "parallel": {"parallel_mode": 1, "full_batch": True, "gradients_mean": False},
        "parallel_config": {
            "data_parallel": job.data_parallel,
            "model_parallel": job.parallel.model_parallel,
            "pipeline_stage": stages,
            **({"micro_batch_num": accumulation} if stages > 1 else {}),
        },
        # MindFormers multiplies by data_parallel and micro_batch_num.
        "runner_config": {"batch_size": job.batch, "gradient_accumulation_steps": 1 if stages > 1 else accumulation},
        "train_dataset": {"batch_size": job.batch},
        "train_dataset_task": {"dataset_config": {"batch_size": job.batch}},
        "runner_wrapper": {
            "type": "MFPipelineWithLossScaleCell" if stages > 1 else "MFTrainOneStepCell",
            "scale_sense": 1.0,
            "use_clip_grad": True,
            "max_grad_norm": job.optimizer.max_grad_norm,
            "calculate_per_token_loss": True,
        },
    }


def _problems(job: TrainJob, config: Mapping[str, Any]) -> Iterator[str]:
    model_parallel, stages = job.parallel.model_parallel, job.parallel.pipeline_stage
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = config[key] or config["num_attention_heads"]
        if heads % model_parallel:
            yield f"backend.ascend.model_parallel must divide {key} {heads}, got {model_parallel}"
    if stages > config["num_hidden_layers"]:
        yield f"backend.ascend.pipeline_stage must be at most {config['num_hidden_layers']} layers, got {stages}"
    if stages > job.order.shape[1]:
        yield (
            "train.gradient_accumulation_steps must be at least backend.ascend.pipeline_stage "
            f"{stages}, which work on as many micro-batches at once, got {job.order.shape[1]}"
        )
