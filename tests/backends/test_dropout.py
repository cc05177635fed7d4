"""Both backends drop what twintune.dropout says; tests/parity sees that whole runs agree."""

import numpy as np
import pytest
from numpy.typing import NDArray

from twintune.dropout import channel_numbers, kept, token_numbers

SHARE = 0.3
CHANNELS = channel_numbers("model.layers.1.mlp.down_proj", 24)
TOKENS = np.stack([token_numbers(5, place, 7) for place in (2, 3)])
X = np.random.default_rng(0).normal(size=(2, 7, 24)).astype(np.float32)


def expected() -> NDArray[np.float32]:
    mask = kept(TOKENS.ravel(), CHANNELS, SHARE).reshape(X.shape)
    return np.where(mask, X * np.float32(1 / (1 - SHARE)), np.float32(0))


def test_cuda() -> None:
    torch = pytest.importorskip("torch", reason="the cuda backend computes with it")
    from twintune.backends.cuda.dropout import FormulaDropout

    layer = FormulaDropout(SHARE, torch.from_numpy(CHANNELS))
    layer.tokens = torch.from_numpy(TOKENS)[..., None]
    x = torch.from_numpy(X).requires_grad_()
    y = layer.train()(x)
    np.testing.assert_array_equal(y.detach().numpy(), expected())
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy() != 0, expected() != 0)
    np.testing.assert_array_equal(layer.eval()(x).detach().numpy(), X)


def test_ascend() -> None:
    pytest.importorskip("mindformers", reason="the ascend backend computes with it")
    from twintune.backends.ascend.runtime import import_quietly

    import_quietly()
    import mindspore as ms

    from twintune.backends.ascend.dropout import FormulaDropout

    ms.set_context(mode=ms.GRAPH_MODE)
    numbers = ms.Parameter(ms.Tensor(TOKENS), name="dropout_tokens", requires_grad=False)
    layer = FormulaDropout(SHARE, numbers, CHANNELS)
    x = ms.Tensor(X.reshape(-1, X.shape[-1]))
    np.testing.assert_allclose(layer(x).asnumpy().reshape(X.shape), expected(), rtol=1e-7, atol=0)
    np.testing.assert_array_equal(ms.grad(layer)(x).asnumpy().reshape(X.shape) != 0, expected() != 0)
    evaluating = FormulaDropout(SHARE, numbers, CHANNELS).set_train(False)
    np.testing.assert_array_equal(evaluating(x).asnumpy().reshape(X.shape), X)
