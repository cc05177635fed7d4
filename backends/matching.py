"""Whether given weights are those of a network: the same checks and words for every backend."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.errors import raise_collected


def put_each(
    parameters: Mapping[str, Any],
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
    put: Callable[[Any, NDArray[np.float32]], None],
) -> None:
    """Set parameters by name, one after the other, as the tensors come.

    Args:
        parameters: the network's own; each has a shape.
        tensors: names and values.
        put: sets one parameter, in the dtype that it has.

    Raises:
        UserError: for every name the network has not, and every shape that differs.
    """
    problems = []
    for name, tensor in tensors:
        parameter = parameters.get(name)
        if parameter is None:
            problems.append(f"network: {name} must be there to take a weight, got no such parameter")
        elif tuple(parameter.shape) != tensor.shape:
            problems.append(f"network: {name} must be {list(tensor.shape)}, got a parameter of {list(parameter.shape)}")
        else:
            put(parameter, tensor)
    raise_collected(problems)


def check_matrices(
    parameters: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    source: str,
    rule: str = "the adapter must have the matrices of the model and lora.target_modules",
) -> None:
    """Compare names and shapes.

    Args:
        parameters: the network's own by PEFT name; each has a shape.
        tensors: what is to be put in, by PEFT name.
        source: where the tensors come from; it opens each message.
        rule: what must hold.

    Raises:
        UserError: for every name or shape in which the two differ.
    """
    problems = [f"{source}: {rule}, got no {name}" for name in sorted(parameters.keys() - tensors.keys())]
    problems += [f"{source}: {rule}, got {name} besides" for name in sorted(tensors.keys() - parameters.keys())]
    for name in sorted(parameters.keys() & tensors.keys()):
        wanted, given = list(parameters[name].shape), list(tensors[name].shape)
        if wanted != given:
            problems.append(f"{source}: {name} must have shape {wanted}, got {given}")
    raise_collected(problems)
