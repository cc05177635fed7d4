"""The learning rates that MindFormers' own schedule gives."""

import mindspore as ms
import numpy as np
from mindformers.core.lr import build_lr
from numpy.typing import NDArray

from twintune.backends import TrainJob
from twintune.backends.ascend.profile import context, training_config


def learning_rates(job: TrainJob) -> NDArray[np.float64]:
    """The learning rate of every step of the job's schedule, float64 [max_steps] from MindFormers' float32."""
    from mindformers import build_context

    build_context({"context": context(job.device), "parallel": {}, "use_parallel": False})
    rate = build_lr(dict(training_config(job, job.device)["lr_schedule"]))
    steps = (rate(ms.Tensor(step, ms.int32)) for step in range(job.schedule.max_steps))
    return np.array([float(step.asnumpy().reshape(())) for step in steps])
