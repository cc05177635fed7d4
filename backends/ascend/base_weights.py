"""The base weights of a network by Hugging Face name, as numbers: dequantized where it holds NF4 codes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.ascend.parameters import put_in, to_numpy
from twintune.backends.job import TrainJob
from twintune.converters.base_checkpoint import ABSMAX, quantized, quantized_shapes
from twintune.converters.names import base_names
from twintune.converters.nf4 import BLOCK_SIZE, dequantize_nf4
from twintune.converters.stored_tensors import WEIGHT_DTYPES, rounded
from twintune.errors import UserError


class BaseWeights:
    """The base weights of a job's network.

    Args:
        parameters: of the network, by MindFormers name.
        config: the model's checked config.json.
        job: what the network was built for.
    """

    def __init__(self, parameters: Mapping[str, Any], config: Mapping[str, Any], job: TrainJob) -> None:
        names = base_names(config)
        self._dtype = WEIGHT_DTYPES[job.dtype]
        self._quantization = job.quantization
        self._shapes = quantized_shapes(config) if job.quantization else {}
        self._weights = {name: parameters[ours] for name, ours in names.items()}
        self._absmax = {name + ABSMAX: parameters[names[name] + ABSMAX] for name in self._shapes}

    def read(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every weight as it is multiplied, in the order of base_names, one at a time."""
        for name, parameter in self._weights.items():
            if self._quantization is None or name not in self._shapes:
                yield name, to_numpy(parameter)
                continue
            codes, absmax = parameter.asnumpy(), self._absmax[name + ABSMAX].asnumpy()
            weight = dequantize_nf4(codes, absmax, self._shapes[name], BLOCK_SIZE)
            yield name, rounded(weight, self._dtype).astype(np.float32)

    def put(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Replace some.

        Raises:
            UserError: for every name the network has not, and every shape that differs.
        """
        if self._quantization is not None:
            tensors = quantized(self._checked(tensors), self._shapes, self._quantization)
        put_in(self._weights | self._absmax, tensors)

    def _checked(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The same, rounded to the dtype of the network; codes would hide a wrong shape."""
        for name, tensor in tensors:
            wanted = self._shapes.get(name, tensor.shape)
            if tensor.shape != wanted:
                raise UserError(f"network: {name} must be {list(tensor.shape)}, got a parameter of {list(wanted)}")
            yield name, rounded(tensor, self._dtype)
