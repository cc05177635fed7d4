"""The numbers of a schedule beside its warm-up and its steps, spelled as transformers.get_scheduler takes them."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Curve = Literal["linear", "cosine", "1-sqrt"]


class ScheduleSettings(BaseModel):
    """A schedule without numbers of its own: linear, cosine and the constant kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def lowest(self) -> float:
        """The learning rate below which the schedule never falls after its warm-up, where it is given as such."""
        return 0.0


class CosineWithRestarts(ScheduleSettings):
    """A half cosine, begun anew so many times."""

    num_cycles: int = Field(1, ge=1)


class CosineWithMinLr(ScheduleSettings):
    """A cosine that falls to min_lr, or to min_lr_rate of the peak."""

    min_lr: float | None = Field(None, ge=0)
    min_lr_rate: float | None = Field(None, ge=0, le=1)
    num_cycles: float = Field(0.5, gt=0)  # 0.5: from the peak to the lowest

    @model_validator(mode="after")
    def _one_of_them(self) -> "CosineWithMinLr":
        if (self.min_lr is None) == (self.min_lr_rate is None):
            raise ValueError("min_lr or min_lr_rate, one of them")
        return self

    @property
    def lowest(self) -> float:
        """min_lr, if it is given."""
        return self.min_lr or 0.0


class CosineWarmupWithMinLr(CosineWithMinLr):
    """The same one step ahead, its warm-up beginning above 0."""

    warmup_lr_rate: float | None = Field(None, ge=0, le=1)  # of the peak, at the first step; None: 1 / warm-up steps


class Polynomial(ScheduleSettings):
    """What is left of the steps, to the power, from the peak to lr_end."""

    lr_end: float = Field(1e-7, ge=0)
    power: float = Field(1.0, gt=0)

    @property
    def lowest(self) -> float:
        """lr_end."""
        return self.lr_end


class InverseSqrt(ScheduleSettings):
    """One over the square root of the steps since the warm-up, counted in timescales."""

    timescale: int | None = Field(None, ge=1)  # steps; None: the warm-up's, or 10,000 without one


class WarmupStableDecay(ScheduleSettings):
    """Warm-up, the peak, and a decay to min_lr_ratio of the peak."""

    num_decay_steps: int = Field(ge=1)
    num_stable_steps: int | None = Field(None, ge=0)  # None: what warm-up and decay leave
    warmup_type: Curve = "linear"
    decay_type: Curve = "cosine"
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    num_cycles: float = Field(0.5, gt=0)


SETTINGS: dict[str, type[ScheduleSettings]] = {
    "cosine_with_restarts": CosineWithRestarts,
    "cosine_with_min_lr": CosineWithMinLr,
    "cosine_warmup_with_min_lr": CosineWarmupWithMinLr,
    "polynomial": Polynomial,
    "inverse_sqrt": InverseSqrt,
    "warmup_stable_decay": WarmupStableDecay,
}


def schedule_settings(kind: str, given: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    """The numbers of a schedule, its defaults filled in; what is None and has no default is left out.

    Args:
        kind: its lr_scheduler_type.
        given: some of its numbers.
        learning_rate: the peak, which no lowest learning rate may exceed.

    Raises:
        ValueError: for every unknown, missing or wrong number, as a rule that begins with `should`.
    """
    model = SETTINGS.get(kind, ScheduleSettings)
    try:
        settings = model.model_validate(given)
    except ValidationError as error:
        raise ValueError(
            f"should hold {'; '.join(_rule(problem, kind, model) for problem in error.errors())}"
        ) from None
    if settings.lowest >= learning_rate:
        raise ValueError(f"should hold a lowest learning rate below train.learning_rate {learning_rate:g}")
    return settings.model_dump(exclude_none=True)


def _rule(problem: Any, kind: str, model: type[ScheduleSettings]) -> str:
    if not problem["loc"]:
        return str(problem["msg"].removeprefix("Value error, "))
    (name,) = problem["loc"]
    if problem["type"] == "missing":
        return f"{name}, which {kind} needs"
    if problem["type"] != "extra_forbidden":
        rule = problem["msg"].removeprefix("Input should be ").removeprefix("Input should ")
        return f"{name} that is {rule}"
    if not model.model_fields:
        return f"nothing, as {kind} has no numbers of its own"
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"its keys are {', '.join(model.model_fields)}"
    return f"keys of {kind} alone, and {name} is none ({hint})"
