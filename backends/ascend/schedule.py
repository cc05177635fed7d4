"""Learning rates inside MindFormers: its own schedules, and a table by twintune's formula for the others."""

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.core.lr import build_lr
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule
from numpy.typing import NDArray

from twintune import schedule
from twintune.backends.ascend.profile import context, training_config
from twintune.backends.job import Schedule, ScheduleName, TrainJob


@MindFormerRegister.register(MindFormerModuleType.LR)
class TwintuneLR(LearningRateSchedule):  # type: ignore[misc]  # mindspore ships no types
    """The learning rates of a schedule: see twintune.schedule.learning_rates, whose table it holds in float32.

    Inputs:
        global_step: steps done, int32, a scalar or [1].

    Outputs:
        The learning rate of the next step, float32 of the same shape.
    """

    def __init__(
        self,
        learning_rate: float,
        lr_scheduler_type: ScheduleName,
        warmup_steps: int,
        total_steps: int,
        lr_scheduler_kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        settings = Schedule(lr_scheduler_type, warmup_steps, total_steps, dict(lr_scheduler_kwargs))
        self.rates = ms.Tensor(schedule.learning_rates(settings, learning_rate), ms.float32)
        self.last = total_steps - 1

    def construct(self, global_step: ms.Tensor) -> ms.Tensor:
        """Look the step up."""
        return ops.gather(self.rates, ops.minimum(ops.cast(global_step, ms.int32), self.last), 0)


def learning_rates(job: TrainJob) -> NDArray[np.float64]:
    """The learning rate of every step of the job's schedule, float64 [max_steps] from MindFormers' float32."""
    from mindformers import build_context

    build_context({"context": context(job.device), "parallel": {}, "use_parallel": False})
    rate = build_lr(dict(training_config(job, job.device)["lr_schedule"]))
    steps = (rate(ms.Tensor(step, ms.int32)) for step in range(job.schedule.max_steps))
    return np.array([float(step.asnumpy().reshape(())) for step in steps])
