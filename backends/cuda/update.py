"""How the gradients of an optimizer step move the adapter, where each rank has all of it."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.cuda.loss import TokenLosses
from twintune.backends.cuda.model import adapter_parameters, adapter_tensors
from twintune.backends.cuda.optimizer import optimizer_state, put_in_state, set_learning_rate
from twintune.backends.cuda.ranks import Sums
from twintune.converters.training_state import TrainingState


class Update(Protocol):
    """What the training loop needs of the ranks' gradients; every rank calls all of it.

    Attributes:
        losses: a torch module that gives token_losses, whose gradients `step` will find.
    """

    losses: Any

    def step(self, rate: float) -> float:
        """Move the adapter by what the backward passes left, at a learning rate.

        Returns:
            The norm of the whole gradient before clipping, which may not be finite.
        """

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """All trained parameters by PEFT's names."""

    def state(self) -> dict[str, NDArray[Any]]:
        """The moments of every parameter by `MOMENT.NAME`, once a step has been made."""

    def put_state(self, state: TrainingState, source: str) -> None:
        """Go on from such moments. Raises UserError for every one that is missing, unknown or misshapen."""


class WholeUpdate:
    """Gradients are summed over the ranks, and each rank makes the same step.

    Args:
        model: with its adapter.
        optimizer: over the adapter's parameters.
        max_grad_norm: of the gradient after clipping.
        sums: what the ranks add up by.
    """

    def __init__(self, model: Any, optimizer: Any, max_grad_norm: float, sums: Sums) -> None:
        self.losses = TokenLosses(model)
        self._model, self._optimizer, self._max_grad_norm, self._sums = model, optimizer, max_grad_norm, sums
        self._parameters = adapter_parameters(model)

    def step(self, rate: float) -> float:
        """As Update says."""
        parameters = list(self._parameters.values())
        self._sums.gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """As Update says."""
        return adapter_tensors(self._model)

    def state(self) -> dict[str, NDArray[Any]]:
        """As Update says."""
        return optimizer_state(self._optimizer, self._parameters)

    def put_state(self, state: TrainingState, source: str) -> None:
        """As Update says."""
        put_in_state(self._optimizer, self._parameters, state, source)
