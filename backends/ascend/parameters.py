"""What lies in a network's parameters: put in by name, compared with the files, accounted for whole.

MindFormers trains and predicts with random weights without a word; nothing here runs on trust.
"""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Lora, PrefixTuning, TrainJob
from twintune.backends.matching import put_each
from twintune.converters.adapter import read_adapter_for, read_any_adapter
from twintune.converters.base_checkpoint import network_tensors
from twintune.converters.prefix_adapter import is_prefix, prefix_names
from twintune.converters.saved_modules import trained_names
from twintune.errors import raise_collected
from twintune.models import read_model_config


def parameters_by_name(network: Any) -> dict[str, Any]:
    """The parameters of a cell by MindFormers name."""
    return {parameter.name: parameter for parameter in network.get_parameters()}


def put_in(parameters: dict[str, Any], tensors: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Set parameters by MindFormers name, each in the dtype that it has.

    Raises:
        UserError: for every name the network has not, and every shape that differs.
    """
    put_each(parameters, tensors, _set)


def _set(parameter: Any, tensor: NDArray[Any]) -> None:
    parameter.set_data(_in_dtype_of(parameter, tensor))


def _in_dtype_of(parameter: Any, tensor: NDArray[Any]) -> ms.Tensor:
    # MindSpore does not read NumPy's bfloat16; codes are bytes already.
    numbers = tensor if tensor.dtype == np.uint8 else tensor.astype(np.float32)
    return ms.Tensor(numbers).astype(parameter.dtype)


def names_of_trained(config: Mapping[str, Any], adapter: Lora | PrefixTuning) -> dict[str, str]:
    """Every trained parameter, PEFT name to MindFormers name.

    Raises:
        UserError: as trained_names.
    """
    return prefix_names(adapter) if isinstance(adapter, PrefixTuning) else trained_names(config, adapter)


def read_adapter_of(
    folder: Path, config: Mapping[str, Any], *, to_train: bool = False
) -> tuple[Lora | PrefixTuning, dict[str, NDArray[np.float32]]]:
    """An adapter's settings and numbers by PEFT name, held against the model where it is LoRA.

    Raises:
        UserError: what read_adapter_for and read_any_adapter raise.
    """
    return read_any_adapter(folder, to_train=to_train) if is_prefix(folder) else read_adapter_for(folder, config)


def put_on_adapter(job: TrainJob, parameters: dict[str, Any]) -> None:
    """Put a job's initial adapter in, and see that the base is the job's and the adapter alone is trained.

    Raises:
        UserError: for every parameter that is missing, misshapen, differs or comes from nowhere.
    """
    config = read_model_config(job.model)
    _, initial = read_adapter_of(job.initial_adapter, config, to_train=True)
    names = names_of_trained(config, job.adapter)
    put_in(parameters, ((names[name], tensor) for name, tensor in initial.items()))
    held = network_tensors(job.model, config, job.dtype, job.quantization)
    check_base(job.model, parameters, held, set(names.values()))
    check_trainable(parameters, set(names.values()))


def adapter_tensors(
    parameters: dict[str, Any], config: dict[str, Any], adapter: Lora | PrefixTuning
) -> dict[str, NDArray[np.float32]]:
    """All trained parameters by PEFT name, A [r, in] and B [out, r]."""
    return {name: to_numpy(parameters[ours]) for name, ours in names_of_trained(config, adapter).items()}


def to_numpy(parameter: Any) -> NDArray[np.float32]:
    """A copy as float32, exact from float16 and bfloat16."""
    array: NDArray[np.float32] = ms.Tensor(parameter).astype(ms.float32).asnumpy().copy()
    return array


def check_base(
    model: Path, parameters: dict[str, Any], wanted: Iterable[tuple[str, NDArray[Any]]], trained: Set[str]
) -> None:
    """Compare every base parameter in the network with the Hugging Face file, and account for all.

    Args:
        model: Hugging Face folder, for messages.
        parameters: of the network, by MindFormers name.
        wanted: what it must hold, see network_tensors.
        trained: names of those that the adapter brings.

    Raises:
        UserError: for every parameter that is missing, differs, or comes from nowhere.
    """
    problems = []
    strangers = parameters.keys() - trained
    for name, array in wanted:
        strangers.discard(name)
        parameter = parameters.get(name)
        if parameter is None:
            problems.append(f"network: {name} must be there for the base weights, got no such parameter")
        elif name not in trained and not _same(parameter, array):
            problems.append(f"network: {name} must equal that of {model}, got other values")
    random = [f"network: {name} must come from the base weights, got a random parameter" for name in sorted(strangers)]
    raise_collected(random + problems)


def _same(parameter: Any, array: NDArray[Any]) -> bool:
    return np.array_equal(to_numpy(parameter), to_numpy(_in_dtype_of(parameter, array)))


def check_trainable(parameters: dict[str, Any], adapter: Set[str]) -> None:
    """Exactly the parameters that the adapter brings are trained.

    Raises:
        UserError: for every parameter on the wrong side.
    """
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    raise_collected(
        f"network: {name} must be {'trained' if name in adapter else 'frozen'}, got the opposite"
        for name in sorted(trainable ^ adapter)
    )
