"""The network of a job opened for measuring: the one that MindFormers' Trainer would train, and its gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.wrapper.wrapper import DataOrderWrapperCell, get_real_models
from mindspore import nn
from numpy.typing import NDArray

from twintune.backends import Forward, StepGradients
from twintune.backends.ascend.accumulation import MeanGradients
from twintune.backends.ascend.base_weights import BaseWeights
from twintune.backends.ascend.data import TokenNumbers, one_conversation, ordered_dataset
from twintune.backends.ascend.dropout import has_dropout, put_on_dropout
from twintune.backends.ascend.keys import check_keys, check_overrides
from twintune.backends.ascend.nf4 import put_on_nf4
from twintune.backends.ascend.packed import PackedNetwork
from twintune.backends.ascend.parameters import parameters_by_name, put_in, put_on_adapter, to_numpy
from twintune.backends.ascend.profile import compiled_length, packed_borders, training_config
from twintune.backends.ascend.runtime import build
from twintune.backends.ascend.stages import keep_stages, kept_outputs
from twintune.backends.job import TrainJob
from twintune.backends.matching import check_matrices
from twintune.converters.base_checkpoint import network_tensors
from twintune.converters.nf4 import BLOCK_SIZE
from twintune.converters.rows import IGNORED
from twintune.converters.saved_modules import trained_names
from twintune.errors import UserError, raise_collected
from twintune.models import read_model_config


class AscendProbe:
    """The Probe protocol over MindFormers' network, compiled once for `forward` and once for `gradients`."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._length = compiled_length(job.row_length)
        self._borders = packed_borders(job, job.device).value if job.packed else None
        config = read_model_config(job.model)
        network, columns = build_for_training(job)
        parameters = parameters_by_name(network)
        put_in(parameters, network_tensors(job.model, config, job.dtype, job.quantization))
        put_on_adapter(job, parameters)
        self._base = BaseWeights(parameters, config, job)
        self._adapter = {name: parameters[ours] for name, ours in trained_names(config, job.lora).items()}
        self._network = DataOrderWrapperCell(columns, network)
        if self._borders:
            self._network = PackedNetwork(self._network, self._borders)
        weights = ms.ParameterTuple(list(self._adapter.values()))
        trained = put_on_dropout(job, self._network)
        self._mean_gradients = MeanGradients(trained, weights, accumulation=job.order.shape[1])
        self._stages = keep_stages(get_real_models(network).model, (1, self._length, config["hidden_size"]))

    def base(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every base weight as it lies in the network, by Hugging Face name, in the order of base_names."""
        return self._base.read()

    def put_base(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Replace base weights, rounded to the dtype of the network, or to NF4 where it has codes.

        Raises:
            UserError: for every name the network has not, and every shape that differs.
        """
        self._base.put(tensors)

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """Every LoRA matrix as it lies in the network, by PEFT name."""
        return {name: to_numpy(parameter) for name, parameter in self._adapter.items()}

    def put_adapter(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace all LoRA matrices.

        Raises:
            UserError: for every missing, unknown and misshapen one.
        """
        check_matrices(self._adapter, tensors, "network")
        put_in(self._adapter, tensors.items())

    def forward(self, rows: Sequence[Sequence[int]]) -> list[Forward]:
        """Logits and hidden states of unpacked rows, one row at a time, in evaluation mode.

        Raises:
            UserError: for a row that is longer than the compiled length.
        """
        raise_collected(
            f"row {number}: it must have at most the {self._length} tokens of the compiled network, got {len(row)}"
            for number, row in enumerate(rows)
            if len(row) > self._length
        )
        self._network.set_train(False)
        return [self._forward(row) for row in rows]

    def _forward(self, row: Sequence[int]) -> Forward:
        input_ids = np.full((1, self._length), self._job.pad_token_id, np.int32)
        input_ids[0, : len(row)] = row
        inputs = [input_ids, input_ids]  # labels, which evaluation does not use
        if self._borders:
            inputs.append(one_conversation(len(row), self._length, self._borders)[None])
        logits = self._network(*map(ms.Tensor, inputs))[0]
        return Forward(logits.asnumpy()[0, : len(row)].copy(), kept_outputs(self._stages, len(row)))

    def gradients(self, numbers: NDArray[np.int64]) -> StepGradients:
        """Losses and gradients of the job's rows with these numbers, int64 [accumulation, batch].

        The graph gives losses by micro-batch. It is called once more for each place in a batch, with the labels of
        all other places masked: that is each row's own loss. Dropout is that of the job's first step in each call.

        Raises:
            UserError: if no token of these rows is trained.
        """
        rows = self._read(numbers)
        if not (rows[1][:, 1:] != IGNORED).any():
            raise UserError(f"{self._job.rows}: rows {numbers.ravel().tolist()} must have a trained token, got none")
        self._network.set_train(True)
        losses, counts, gradients = self._call(rows)
        tokens = int(counts.sum())
        if numbers.shape[1] == 1:
            alone = [(losses, counts)]
        else:
            alone = [self._call(one_place)[:2] for one_place in _places(rows, numbers.shape[1])]
        return StepGradients(
            loss=float(losses.sum() / tokens),
            tokens=tokens,
            row_losses=np.stack([one[0] for one in alone], axis=1),
            row_tokens=np.stack([one[1] for one in alone], axis=1),
            gradients=dict(zip(self._adapter, gradients, strict=True)),
        )

    def _read(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """The columns of the dataset, int32 [accumulation * batch, ...] each."""
        mindrecord = self._job.rows / "rows.mindrecord"
        dropout = TokenNumbers(self._job.seed, self._job.own_places[:1]) if has_dropout(self._job) else None
        dataset = ordered_dataset(
            mindrecord, numbers[None], self._length, self._job.pad_token_id, self._borders, dropout
        )
        return next(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))

    def _call(self, rows: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.float64], NDArray[np.int64], list[Any]]:
        """Loss sums and trained tokens by micro-batch, and the gradients."""
        losses, counts, gradients = self._mean_gradients(ms.Tensor(1.0, ms.float32), *map(ms.Tensor, rows))
        return losses.asnumpy().astype(np.float64), counts.asnumpy().astype(np.int64), [g.asnumpy() for g in gradients]


def build_for_training(job: TrainJob) -> tuple[nn.Cell, list[str]]:
    """MindFormers' network with LoRA on random weights, and the names of its inputs, as its Trainer builds it.

    Raises:
        UserError: for overrides that MindFormers would not read.
    """
    check_overrides(job.overrides)
    settings = training_config(job, job.device)
    check_keys(settings)
    per_token = settings["calculate_per_token_loss"]
    network = build(settings["model"], settings["context"], calculate_per_token_loss=per_token)
    if job.quantization is not None:
        put_on_nf4(network, BLOCK_SIZE)
    return network, settings["train_dataset"]["input_columns"]


def _places(rows: Sequence[NDArray[np.int32]], batch: int) -> Iterator[list[NDArray[np.int32]]]:
    """The columns with labels at one place of each micro-batch only, for every place."""
    input_ids, labels, *others = rows
    places = np.arange(len(labels)) % batch
    for place in range(batch):
        yield [input_ids, np.where((places == place)[:, None], labels, np.int32(IGNORED)), *others]
