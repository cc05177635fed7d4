"""Whether given LoRA matrices are those of a network: the same check for every backend."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.errors import raise_collected


def check_matrices(parameters: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], source: str) -> None:
    """Compare names and shapes.

    Args:
        parameters: the network's own by PEFT name; each has a shape.
        tensors: what is to be put in, by PEFT name.
        source: where the tensors come from; it opens each message.

    Raises:
        UserError: for every name or shape in which the two differ.
    """
    rule = f"{source}: the adapter must have the matrices of the model and lora.target_modules"
    problems = [f"{rule}, got no {name}" for name in sorted(parameters.keys() - tensors.keys())]
    problems += [f"{rule}, got {name} besides" for name in sorted(tensors.keys() - parameters.keys())]
    for name in sorted(parameters.keys() & tensors.keys()):
        wanted, given = list(parameters[name].shape), list(tensors[name].shape)
        if wanted != given:
            problems.append(f"{source}: {name} must have shape {wanted}, got {given}")
    raise_collected(problems)
