"""What a run on PyTorch leaves behind and goes on from: adapter and optimizer, under PEFT's names."""

from typing import Any

from twintune.backends.cuda.model import adapter_parameters, adapter_tensors, put_in_adapter
from twintune.backends.cuda.optimizer import optimizer_state, put_in_state
from twintune.backends.job import TrainJob
from twintune.converters.training_state import TrainingState, read_checkpoint, write_checkpoint


def save(job: TrainJob, model: Any, optimizer: Any, step: int) -> None:
    """Write the checkpoint after a step to `job.checkpoint(step)`."""
    state = TrainingState(step, "cuda", optimizer_state(optimizer, adapter_parameters(model)))
    write_checkpoint(
        job.checkpoint(step), adapter_tensors(model), job.adapter, str(job.model), state, only_model=job.save_only_model
    )


def resume(job: TrainJob, model: Any, optimizer: Any) -> None:
    """Put `job.resume_from`, if there is one, in place of the beginning.

    Raises:
        UserError: for a checkpoint that is broken or of another adapter or optimizer.
    """
    if job.resume_from is None:
        return
    tensors, state = read_checkpoint(job.resume_from)
    put_in_adapter(model, tensors, str(job.resume_from))
    put_in_state(optimizer, adapter_parameters(model), state, str(job.resume_from))
