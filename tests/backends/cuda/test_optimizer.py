"""The optimizers by their formulas."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda backend's framework")

from twintune.backends import Optimizer
from twintune.backends.cuda.optimizer import make_optimizer

STEPS = 20
TOLERANCE = 1e-6  # relative, float32 against float64


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_the_formula(bias_correction: bool, weight_decay: float) -> None:
    settings = Optimizer(
        1e-2, weight_decay, 0.9, 0.99, 1e-6, 1.0, "adamw_torch" if bias_correction else "adam_weight_decay"
    )
    draw = np.random.default_rng(0)
    w = draw.normal(size=(5, 3))
    parameter = torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
    optimizer = make_optimizer(settings, [parameter])
    m, v = np.zeros_like(w), np.zeros_like(w)
    # MindSpore holds the betas of AdamWeightDecay in float32; torch's AdamW takes them as they are.
    beta1, beta2 = (beta if bias_correction else float(np.float32(beta)) for beta in (0.9, 0.99))
    for step in range(1, STEPS + 1):
        gradient = draw.normal(size=w.shape)
        rate = 1e-2 / step
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        corrections = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
        w = w - rate * (m / corrections[0] / (np.sqrt(v / corrections[1]) + 1e-6) + weight_decay * w)
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=TOLERANCE, atol=TOLERANCE)
