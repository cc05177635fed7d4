"""Faults of the training step: labels in the loss, optimizer, schedule, clipping, normaliser."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.parity.fault_places import Patch, cuda
from twintune.backends.job import Optimizer, TrainJob
from twintune.converters.rows import Row


def in_loss_rows(change: Callable[[Any, Any], Any]) -> Callable[[Patch], None]:
    """Plant a fault in the labels as the loss gets them, after the rows were read."""

    def plant(patch: Patch) -> None:
        rows = cuda("rows")

        pad = rows.pad_right

        def changed(*arguments: Any) -> tuple[Any, Any]:
            ids, labels = pad(*arguments)
            return ids, change(ids, labels)

        patch.setattr(rows, "pad_right", changed)

    return plant


def shifted_once_more(_ids: Any, labels: Any) -> Any:
    return labels.roll(1, dims=1)


def optimizer(build: Callable[[Optimizer, list[Any]], Any]) -> Callable[[Patch], None]:
    """Replace the optimizer."""

    def plant(patch: Patch) -> None:
        train = cuda("train")

        patch.setattr(train, "make_optimizer", build)

    return plant


def no_bias_correction(settings: Optimizer, parameters: list[Any]) -> Any:
    return cuda("optimizer").make_optimizer(replace(settings, optim="adam_weight_decay"), parameters)


def no_weight_decay(settings: Optimizer, parameters: list[Any]) -> Any:
    import torch

    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=betas, eps=1e-8, weight_decay=0.0)


def another_beta2(settings: Optimizer, parameters: list[Any]) -> Any:
    import torch

    decay = settings.weight_decay
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=decay)


def moments_forgotten(settings: Optimizer, parameters: list[Any]) -> Any:
    """Adam that begins anew at each step."""
    import torch

    class Forgetful(torch.optim.AdamW):  # type: ignore[misc]  # torch is not read by mypy here
        def step(self, closure: Any = None) -> None:
            super().step()
            if getattr(self, "steps", 0) >= 3:  # the one step that is looked at closely stays right
                self.state.clear()
            self.steps = getattr(self, "steps", 0) + 1

    return Forgetful(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def warmup_rounded_down(patch: Patch) -> None:
    train = cuda("train")

    rates = train.learning_rates

    def rounded_down(schedule: Any, learning_rate: float) -> NDArray[np.float64]:
        rounded: NDArray[np.float64] = rates(replace(schedule, warmup_steps=schedule.warmup_steps - 1), learning_rate)
        return rounded

    patch.setattr(train, "learning_rates", rounded_down)


def clipped_by_value(patch: Patch) -> None:
    import torch

    def clip(parameters: list[Any], limit: float) -> Any:
        norm = torch.linalg.vector_norm(torch.stack([parameter.grad.norm() for parameter in parameters]))
        torch.nn.utils.clip_grad_value_(parameters, limit / 100)
        return norm

    patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


def weighted_means(weight: Callable[[list[Row], int, int], float]) -> Callable[[Patch], None]:
    """Plant another normaliser: each micro-batch's mean loss gets a weight of its own in the backward pass."""

    def plant(patch: Patch) -> None:
        probe, train = cuda("probe"), cuda("train")

        backward = train.backward

        def changed(job: TrainJob, model: Any, batches: list[Any], tokens: int, places: NDArray[np.int64]) -> Any:
            import torch

            parts = list(split(job, batches, places))
            losses = [
                backward(job, model, [part], round(weight(part.rows, len(parts), tokens)), place).reshape(-1)
                for part, place in parts
            ]
            return torch.cat(losses).reshape(places.shape)

        def split(job: TrainJob, batches: list[Any], places: NDArray[np.int64]) -> Iterator[tuple[Any, Any]]:
            if weight is not mean_of_ranks:
                yield from zip(batches, places[:, None], strict=True)
                return
            rows = cuda("rows")
            for row, place in zip([row for batch in batches for row in batch.rows], places.ravel(), strict=True):
                yield rows.MicroBatch([row], rows.model_inputs(job, [row])), np.array([[place]])

        for module in (train, probe):
            patch.setattr(module, "backward", changed)

    return plant


def mean_of_micro_batches(part: list[Row], parts: int, tokens: int) -> float:
    return parts * sum(row.trained_tokens for row in part)


def mean_of_ranks(part: list[Row], parts: int, tokens: int) -> float:
    """Each row as if a rank of its own had it."""
    return parts * part[0].trained_tokens


def training_fails(patch: Patch) -> None:
    train = cuda("train")
    from twintune.errors import UserError

    def fail(*_: Any) -> Any:
        raise UserError("step 1: loss must be finite, got nan")

    patch.setattr(train, "optimizer_steps", fail)
