"""What a run on MindSpore leaves behind and goes on from: adapter and optimizer, under PEFT's names."""

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from numpy.typing import NDArray

from twintune.backends.ascend.parameters import names_of_trained, put_in, to_numpy
from twintune.backends.job import TrainJob
from twintune.backends.matching import check_matrices
from twintune.converters.training_state import TrainingState, read_checkpoint, write_checkpoint
from twintune.models import read_model_config
from twintune.optimizers import moment_names

PREFIXES = {"exp_avg": "adam_m", "exp_avg_sq": "adam_v", "momentum_buffer": "moments"}  # torch's names and MindSpore's


def save(job: TrainJob, adapter: Mapping[str, NDArray[np.float32]], optimizer: Any, step: int) -> None:
    """Write the checkpoint after a step to `job.checkpoint(step)`."""
    moments = {name: to_numpy(parameter) for name, parameter in _moments(job, optimizer).items()}
    state = TrainingState(step, "ascend", moments)
    write_checkpoint(job.checkpoint(step), adapter, job.adapter, str(job.model), state, only_model=job.save_only_model)


def resume(job: TrainJob, adapter: Mapping[str, Any], optimizer: Any) -> None:
    """Put `job.resume_from`, if there is one, in place of the beginning.

    Args:
        job: what is trained.
        adapter: the network's parameters by PEFT name.
        optimizer: of the step cell.

    Raises:
        UserError: for a checkpoint that is broken or of another adapter or optimizer.
    """
    if job.resume_from is None:
        return
    source = str(job.resume_from)
    tensors, state = read_checkpoint(job.resume_from)
    check_matrices(adapter, tensors, source)
    put_in(dict(adapter), tensors.items())
    moments = _moments(job, optimizer)
    check_matrices(moments, state.optimizer, source, "the checkpoint must have the moments of train.optim")
    put_in(moments, state.optimizer.items())
    optimizer.global_step.set_data(ms.Tensor([state.step], ms.int32))


def _moments(job: TrainJob, optimizer: Any) -> dict[str, Any]:
    """The optimizer's parameters by torch's name of the moment and PEFT's of the matrix."""
    own = {parameter.name: parameter for parameter in optimizer.get_parameters()}
    names = names_of_trained(read_model_config(job.model), job.adapter)
    return {
        f"{moment}.{name}": own[f"{PREFIXES[moment]}.{ours}"]
        for name, ours in names.items()
        for moment in moment_names(job.optimizer)
    }
