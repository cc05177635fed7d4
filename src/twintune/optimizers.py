"""The optimizers by formula, once, in float64: what every backend's implementation is tested against.

Not what trains: each backend has its framework's own.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Optimizer

Array = NDArray[np.float64]
Moments = dict[str, Array]  # by torch's names


def update(
    settings: Optimizer, weight: Array, gradient: Array, moments: Mapping[str, Array], step: int, rate: float
) -> tuple[Array, Moments]:
    """One update of a weight by an already clipped gradient.

    Args:
        settings: which formula, and its numbers.
        weight: float64, of any shape.
        gradient: float64, of the same shape.
        moments: what the step before gave; empty before the first.
        step: from 1.
        rate: the learning rate of this step.

    Returns:
        The weight and the moments after it.
    """
    before = {name: moments.get(name, np.zeros_like(weight)) for name in moment_names(settings)}
    return FORMULAS[settings.optim](settings, weight, gradient, before, step, rate)


def moment_names(settings: Optimizer) -> tuple[str, ...]:
    """What an optimizer carries from step to step, by torch's names."""
    if settings.optim == "sgd":
        return ("momentum_buffer",) if settings.sgd_momentum else ()
    return ("exp_avg",) if settings.optim == "lion_32bit" else ("exp_avg", "exp_avg_sq")


def _adamw(
    settings: Optimizer, weight: Array, gradient: Array, moments: Moments, step: int, rate: float
) -> tuple[Array, Moments]:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as torch.optim.AdamW.

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    w = (1 - lr decay) w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).
    """
    m, v = _means(settings.adam_beta1, settings.adam_beta2, gradient, moments)
    largest = np.sqrt(v / (1 - settings.adam_beta2**step)) + settings.adam_epsilon
    weight = (1 - rate * settings.weight_decay) * weight - rate * m / (1 - settings.adam_beta1**step) / largest
    return weight, {"exp_avg": m, "exp_avg_sq": v}


def _adam_weight_decay(
    settings: Optimizer, weight: Array, gradient: Array, moments: Moments, step: int, rate: float
) -> tuple[Array, Moments]:
    """Adam with decoupled weight decay and no bias correction, as mindspore.nn.AdamWeightDecay.

    m, v as in AdamW;  w = w - lr (m / (sqrt(v) + eps) + decay w). MindSpore holds the betas in float32:
    1 - beta2 of 0.999 is then 0.00099998713, which moves every update by 6e-6 of itself.
    """
    beta1, beta2 = (float(np.float32(beta)) for beta in (settings.adam_beta1, settings.adam_beta2))
    m, v = _means(beta1, beta2, gradient, moments)
    direction = m / (np.sqrt(v) + settings.adam_epsilon) + settings.weight_decay * weight
    return weight - rate * direction, {"exp_avg": m, "exp_avg_sq": v}


def _sgd(
    settings: Optimizer, weight: Array, gradient: Array, moments: Moments, step: int, rate: float
) -> tuple[Array, Moments]:
    """Gradient descent with momentum and L2 decay, as torch.optim.SGD (Sutskever et al. 2013, in torch's form).

    b = momentum b + g + decay w;  w = w - lr b.
    """
    buffer = gradient + settings.weight_decay * weight
    if settings.sgd_momentum:
        buffer = buffer + settings.sgd_momentum * moments["momentum_buffer"]
    return weight - rate * buffer, {"momentum_buffer": buffer}


def _lion(
    settings: Optimizer, weight: Array, gradient: Array, moments: Moments, step: int, rate: float
) -> tuple[Array, Moments]:
    """Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2), as bitsandbytes.optim.Lion32bit.

    w = (1 - lr decay) w - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g.
    """
    m = moments["exp_avg"]
    direction = np.sign(settings.adam_beta1 * m + (1 - settings.adam_beta1) * gradient)
    weight = (1 - rate * settings.weight_decay) * weight - rate * direction
    return weight, {"exp_avg": settings.adam_beta2 * m + (1 - settings.adam_beta2) * gradient}


def _means(beta1: float, beta2: float, gradient: Array, moments: Moments) -> tuple[Array, Array]:
    m = beta1 * moments["exp_avg"] + (1 - beta1) * gradient
    v = beta2 * moments["exp_avg_sq"] + (1 - beta2) * gradient**2
    return m, v


# The paged one has AdamW's formula, its moments lying where memory is; the 8-bit ones keep AdamW's moments rounded.
FORMULAS: dict[str, Callable[[Optimizer, Array, Array, Moments, int, float], tuple[Array, Moments]]] = {
    "adamw_torch": _adamw,
    "adam_weight_decay": _adam_weight_decay,
    "sgd": _sgd,
    "lion_32bit": _lion,
    "adamw_8bit": _adamw,
    "paged_adamw_32bit": _adamw,
    "paged_adamw_8bit": _adamw,
}
