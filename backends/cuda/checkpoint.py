"""What a run on PyTorch leaves behind and goes on from: adapter, optimizer, random generators."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.cuda.model import adapter_parameters, adapter_tensors, put_in_adapter
from twintune.backends.cuda.optimizer import optimizer_state, put_in_state
from twintune.backends.job import TrainJob
from twintune.converters.training_state import TrainingState, read_checkpoint, write_checkpoint


def save(job: TrainJob, model: Any, optimizer: Any, step: int) -> None:
    """Write the checkpoint after a step to `job.checkpoint(step)`."""
    state = TrainingState(step, "cuda", optimizer_state(optimizer, adapter_parameters(model)), _generators(job.device))
    write_checkpoint(
        job.checkpoint(step), adapter_tensors(model), job.adapter, str(job.model), state, only_model=job.save_only_model
    )


def resume(job: TrainJob, model: Any, optimizer: Any) -> None:
    """Put `job.resume_from`, if there is one, in place of the beginning.

    Random generators are set where the checkpoint has their states: one that was written on another device
    or backend has not, and dropout is then drawn anew.

    Raises:
        UserError: for a checkpoint that is broken or of another adapter or optimizer.
    """
    if job.resume_from is None:
        return
    tensors, state = read_checkpoint(job.resume_from)
    put_in_adapter(model, tensors, str(job.resume_from))
    put_in_state(optimizer, adapter_parameters(model), state, str(job.resume_from))
    if "cpu" in state.generators:
        torch.set_rng_state(torch.from_numpy(state.generators["cpu"]))
    if job.device == "cuda" and "cuda" in state.generators:
        torch.cuda.set_rng_state(torch.from_numpy(state.generators["cuda"]))


def _generators(device: str) -> dict[str, NDArray[np.uint8]]:
    states = {"cpu": torch.get_rng_state().numpy()}
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state().numpy()
    return states
