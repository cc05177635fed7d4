"""What lies in a network's parameters: put in by name, compared with the files, accounted for whole.

MindFormers trains and predicts with random weights without a word; nothing here runs on trust.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from numpy.typing import NDArray

from twintune.backends import Lora, TrainJob
from twintune.backends.matching import put_each
from twintune.converters.adapter import read_adapter
from twintune.converters.names import adapter_names, base_names
from twintune.converters.weights import read_weights
from twintune.errors import raise_collected
from twintune.models import read_model_config

LORA_MARK = "mindpet_delta_lora"


def parameters_by_name(network: Any) -> dict[str, Any]:
    """The parameters of a cell by MindFormers name."""
    return {parameter.name: parameter for parameter in network.get_parameters()}


def put_in(parameters: dict[str, Any], tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
    """Set parameters by MindFormers name, each in the dtype that it has.

    Raises:
        UserError: for every name the network has not, and every shape that differs.
    """
    put_each(parameters, tensors, _set)


def _set(parameter: Any, tensor: NDArray[np.float32]) -> None:
    parameter.set_data(ms.Tensor(tensor).astype(parameter.dtype))


def put_on_adapter(job: TrainJob, parameters: dict[str, Any]) -> None:
    """Put a job's initial adapter in, and see that the base is the job's and the adapter alone is trained.

    Raises:
        UserError: for every parameter that is missing, misshapen, differs or comes from nowhere.
    """
    config = read_model_config(job.model)
    _, initial = read_adapter(job.initial_adapter)
    names = adapter_names(config, job.lora.target_modules)
    put_in(parameters, ((names[name], tensor) for name, tensor in initial.items()))
    check_base(job.model, config, parameters)
    check_trainable(parameters, set(names.values()))


def adapter_tensors(parameters: dict[str, Any], config: dict[str, Any], lora: Lora) -> dict[str, NDArray[np.float32]]:
    """The LoRA matrices by PEFT name, A [r, in] and B [out, r]."""
    return {name: to_numpy(parameters[ours]) for name, ours in adapter_names(config, lora.target_modules).items()}


def to_numpy(parameter: Any) -> NDArray[np.float32]:
    """A copy as float32, exact from float16 and bfloat16."""
    array: NDArray[np.float32] = ms.Tensor(parameter).astype(ms.float32).asnumpy().copy()
    return array


def check_base(model: Path, config: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Compare every base parameter in the network with the Hugging Face file, and account for all.

    Raises:
        UserError: for every parameter that is missing, differs, or comes from nowhere.
    """
    names = base_names(config)
    known = set(names.values())
    problems = [
        f"network: {name} must come from the base weights, got a random parameter"
        for name in parameters
        if name not in known and LORA_MARK not in name
    ]
    for theirs, array in read_weights(model, config):
        parameter = parameters.get(names[theirs])
        if parameter is None:
            problems.append(f"network: {names[theirs]} must be there for {theirs}, got no such parameter")
        elif not _same(parameter, array):
            problems.append(f"network: {names[theirs]} must equal {theirs} of {model}, got other values")
    raise_collected(problems)


def _same(parameter: Any, array: NDArray[np.float32]) -> bool:
    wanted = ms.Tensor(array).astype(parameter.dtype).astype(ms.float32).asnumpy()
    return np.array_equal(to_numpy(parameter), wanted)


def check_trainable(parameters: dict[str, Any], adapter: set[str]) -> None:
    """Exactly the LoRA matrices are trained.

    Raises:
        UserError: for every parameter on the wrong side.
    """
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    raise_collected(
        f"network: {name} must be {'trained' if name in adapter else 'frozen'}, got the opposite"
        for name in sorted(trainable ^ adapter)
    )
