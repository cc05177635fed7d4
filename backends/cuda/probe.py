"""The network of a job opened for measuring: training's own model, attention, loss and accumulation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends import Forward, StepGradients
from twintune.backends.cuda.loss import TokenLosses, trained_tokens
from twintune.backends.cuda.model import (
    adapter_parameters,
    adapter_tensors,
    autocast,
    base_parameters,
    put_in_adapter,
    to_numpy,
)
from twintune.backends.cuda.nf4 import Weight
from twintune.backends.cuda.packed import choose_attention, set_attention
from twintune.backends.cuda.rows import model_inputs, open_rows, read_micro_batches
from twintune.backends.cuda.train import (
    backward,
    load_for_training,
    on_this_machine,
)
from twintune.backends.job import TrainJob
from twintune.backends.matching import put_each
from twintune.converters.names import base_names
from twintune.converters.rows import Row
from twintune.errors import UserError
from twintune.models import read_model_config


class CudaProbe:
    """The Probe protocol on the PEFT model that training would compute with."""

    def __init__(self, job: TrainJob) -> None:
        self._job = on_this_machine(job)
        self._model = load_for_training(self._job)
        if job.packed:
            attention = choose_attention(self._job.device, self._job.dtype)
            set_attention(self._model.get_base_model(), attention.value)
        self._names = tuple(base_names(read_model_config(job.model)))

    def base(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every base weight as it lies in the network, by Hugging Face name, in the order of base_names."""
        parameters = base_parameters(self._model)
        for name in self._names:
            yield name, to_numpy(Weight(parameters[name]).read())

    def put_base(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Replace base weights, rounded to the dtype of the network, or to NF4 where it has codes.

        Raises:
            UserError: for every name the network has not, and every shape that differs.
        """
        weights = {name: Weight(parameter) for name, parameter in base_parameters(self._model).items()}
        put_each(weights, tensors, Weight.put)

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """Every LoRA matrix as it lies in the network, by PEFT name."""
        return adapter_tensors(self._model)

    def put_adapter(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace all LoRA matrices.

        Raises:
            UserError: for every missing, unknown and misshapen one.
        """
        put_in_adapter(self._model, tensors, "network")

    def forward(self, rows: Sequence[Sequence[int]]) -> list[Forward]:
        """Logits and hidden states of unpacked rows, one row at a time, in evaluation mode."""
        self._model.eval()
        return [self._forward(np.array(row, np.int32)) for row in rows]

    def _forward(self, ids: NDArray[np.int32]) -> Forward:
        input_ids, _, *attention = model_inputs(self._job, [Row(ids, ids)])
        causal = self._model.get_base_model()
        with (
            hidden_states(causal.get_decoder()) as hidden,
            torch.no_grad(),
            autocast(self._job.device, self._job.dtype),
        ):
            logits = causal(input_ids=input_ids, use_cache=False, **(attention[0] if attention else {})).logits
        return Forward(to_numpy(logits[0]), hidden)

    def gradients(self, numbers: NDArray[np.int64]) -> StepGradients:
        """Losses and gradients of the job's rows with these numbers, int64 [accumulation, batch].

        Dropout is that of the job's first step.

        Raises:
            UserError: if no token of these rows is trained.
        """
        table = open_rows(self._job.rows / "rows.arrow")
        batches = read_micro_batches(self._job, table, numbers)
        tokens = sum(trained_tokens(batch.rows) for batch in batches)
        if tokens == 0:
            raise UserError(f"{self._job.rows}: rows {numbers.ravel().tolist()} must have a trained token, got none")
        self._model.train()
        self._model.zero_grad()
        row_losses: NDArray[np.float64] = (
            backward(self._job, TokenLosses(self._model), batches, tokens, self._job.own_places[0]).cpu().numpy()
        )
        parameters = adapter_parameters(self._model).items()
        return StepGradients(
            loss=float(row_losses.sum()) / tokens,
            tokens=tokens,
            row_losses=row_losses,
            row_tokens=np.array([[row.trained_tokens for row in batch.rows] for batch in batches]),
            gradients={name: to_numpy(parameter.grad) for name, parameter in parameters},
        )


@contextmanager
def hidden_states(decoder: Any) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Keep what each stage of a decoder gives for one row, float32 [length, hidden size], while it runs."""
    stages = {
        "embed_tokens": decoder.embed_tokens,
        **{f"layers.{number}": layer for number, layer in enumerate(decoder.layers)},
        "norm": decoder.final_layernorm if decoder.config.model_type == "phi" else decoder.norm,
    }
    kept: dict[str, NDArray[np.float32]] = {}
    handles = [module.register_forward_hook(_keep(kept, name)) for name, module in stages.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: dict[str, NDArray[np.float32]], name: str) -> Callable[[Any, Any, Any], None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output  # phi's layers give one in transformers 4
        kept[name] = to_numpy(states[0])  # the only row

    return hook
