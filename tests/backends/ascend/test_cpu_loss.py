"""The cross-entropy on CPU leans to no side, as it would without cpu_loss; its gradient is that of the formula."""

import numpy as np
import pytest

pytest.importorskip("mindspore", reason="the loss of MindFormers")

from twintune.backends.ascend.runtime import import_quietly

import_quietly()

import mindspore as ms
from mindformers import build_context
from mindformers.core.loss.loss import CrossEntropyLoss
from mindspore import nn, ops

from twintune.backends.ascend.cpu_loss import use_unbiased_functions
from twintune.backends.ascend.profile import context

BIAS = 1e-7  # of the mean loss of 512 tokens, absolute
LEANS = 1e-6  # what MindSpore's own functions make of it at least
GRADIENT = 3e-7  # of a softmax, absolute


class Network(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    def __init__(self) -> None:
        super().__init__()
        self.loss = CrossEntropyLoss()

    def construct(self, logits: ms.Tensor, labels: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        return self.loss(logits, labels, mask)


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_mean_loss_is_exact(spread: float) -> None:
    build_context({"context": context("cpu"), "parallel": {}, "use_parallel": False})
    draw = np.random.default_rng(0)
    logits = (spread * draw.normal(size=(512, 400))).astype(np.float32)
    labels = draw.integers(0, 400, 512).astype(np.int32)
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(axis=1, keepdims=True)
    expected = (np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(512), labels]).mean()
    given = ms.Tensor(logits), ms.Tensor(labels), ms.Tensor(np.ones(512, np.float32))
    plain, mended = Network(), Network()
    use_unbiased_functions(mended)
    before, after = (network(*given).asnumpy().item() for network in (plain, mended))
    assert abs(before - expected) > LEANS
    assert abs(after - expected) <= BIAS * max(1.0, expected)


class Gradient(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    def __init__(self, network: nn.Cell) -> None:
        super().__init__()
        self.network = network
        self.grad = ops.GradOperation()

    def construct(self, logits: ms.Tensor, labels: ms.Tensor, mask: ms.Tensor) -> ms.Tensor:
        return self.grad(self.network)(logits, labels, mask)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    """Masked tokens, whose label may be -100, have none."""
    build_context({"context": context("cpu"), "parallel": {}, "use_parallel": False})
    draw = np.random.default_rng(0)
    logits = (3 * draw.normal(size=(64, 400))).astype(np.float32)
    labels = draw.integers(0, 400, 64).astype(np.int32)
    labels[::3] = -100
    mask = (labels >= 0).astype(np.float32)
    powers = np.exp(logits.astype(np.float64))
    expected = powers / powers.sum(axis=1, keepdims=True) - (np.arange(400) == labels[:, None])
    expected *= mask[:, None]
    mended = Network()
    use_unbiased_functions(mended)
    given = Gradient(mended)(ms.Tensor(logits), ms.Tensor(labels), ms.Tensor(mask)).asnumpy() * mask.sum()
    np.testing.assert_allclose(given, expected, rtol=0, atol=GRADIENT)
    assert not given[::3].any()
