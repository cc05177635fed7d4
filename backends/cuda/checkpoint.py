"""What a run on PyTorch leaves behind and goes on from: adapter and optimizer, under PEFT's names."""

from typing import Any

from twintune.backends.cuda.model import put_in_adapter
from twintune.backends.cuda.update import Update
from twintune.backends.job import TrainJob
from twintune.converters.training_state import TrainingState, read_checkpoint, write_checkpoint


def save(job: TrainJob, update: Update, step: int) -> None:
    """Write the checkpoint after a step to `job.checkpoint(step)`: rank 0 does, of what every rank gives."""
    adapter, moments = update.adapter(), update.state()
    if job.rank.number == 0:
        state = TrainingState(step, "cuda", moments)
        folder = job.checkpoint(step)
        write_checkpoint(folder, adapter, job.adapter, str(job.model), state, only_model=job.save_only_model)


def read_resumed(job: TrainJob, model: Any) -> TrainingState | None:
    """Put the adapter of `job.resume_from`, if there is one, in place of the initial one; gives its other state.

    Raises:
        UserError: for a checkpoint that is broken or of another adapter.
    """
    if job.resume_from is None:
        return None
    tensors, state = read_checkpoint(job.resume_from)
    put_in_adapter(model, tensors, str(job.resume_from))
    return state
