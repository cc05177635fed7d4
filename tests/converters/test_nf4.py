"""NF4 numbers against bitsandbytes' own on the CPU, bit for bit."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from twintune.converters.nf4 import (
    ABSMAX_BLOCK_SIZE,
    CODE_BOOK,
    QuantizedAbsmax,
    absmax_code_book,
    dequantize_absmax,
    dequantize_nf4,
    quantize_absmax,
    quantize_nf4,
)

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHAPES = [(64, 64), (7, 10), (5, 26), (96, 2), (1, 6), (33, 334)]  # of 64 blocks, of a part of one, of both


def random_weight(shape: tuple[int, int], dtype: str = "float32") -> NDArray[np.float32]:
    """Numbers of a network's size with zeros among them, and a block of zeros where there is room."""
    draw = np.random.default_rng(0)
    weight = draw.normal(0, 0.02, shape)
    weight[draw.random(shape) < 0.1] = 0
    if weight.size > 128:
        weight.reshape(-1)[:64] = 0
    return weight.astype(DTYPES[dtype]).astype(np.float32)


def theirs(weight: NDArray[np.float32], dtype: str = "float32", nested: bool = False) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="the cuda extra is not installed")
    functional = pytest.importorskip("bitsandbytes", reason="the cuda extra is not installed").functional
    tensor = torch.from_numpy(weight).to(getattr(torch, dtype))
    quantized: tuple[Any, Any] = functional.quantize_4bit(tensor, quant_type="nf4", compress_statistics=nested)
    return quantized


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_weights_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: str) -> None:
    weight = random_weight(shape, dtype)
    packed, state = theirs(weight, dtype)
    codes, absmax = quantize_nf4(weight)
    np.testing.assert_array_equal(codes, packed.numpy().ravel())
    np.testing.assert_array_equal(absmax, state.absmax.numpy())
    from bitsandbytes.functional import dequantize_4bit

    expected = dequantize_4bit(packed, state).float().numpy()
    ours = dequantize_nf4(codes, absmax, shape).astype(DTYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(ours, expected)


def test_a_number_halfway_between_two_codes_gets_that_of_bitsandbytes() -> None:
    halfway = (CODE_BOOK[:-1] + CODE_BOOK[1:]) / np.float32(2)
    around = np.concatenate([np.nextafter(halfway, np.float32(-1)), halfway, np.nextafter(halfway, np.float32(1))])
    weight = np.concatenate([around, CODE_BOOK, [1, -1, 0]]).astype(np.float32)[None]
    assert weight.shape == (1, 64)
    packed, _ = theirs(weight)
    codes, absmax = quantize_nf4(weight)
    assert absmax.tolist() == [1.0]
    np.testing.assert_array_equal(codes, packed.numpy().ravel())
    indices = np.stack([codes >> 4, codes & 15], axis=-1).ravel()
    assert indices[15:30].tolist() == list(range(15)), "the lower one"


def test_many_blocks_are_cut_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight((33, 334))
    whole = quantize_nf4(weight)
    monkeypatch.setattr("twintune.converters.nf4.PIECE", 5)
    parts = quantize_nf4(weight)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])


def test_zeros_stay_zeros() -> None:
    codes, absmax = quantize_nf4(np.zeros((2, 64), np.float32))
    np.testing.assert_array_equal(dequantize_nf4(codes, absmax, (2, 64)), np.zeros((2, 64)))


def test_the_code_book_of_absmax_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes", reason="the cuda extra is not installed").functional
    np.testing.assert_array_equal(absmax_code_book(), functional.create_dynamic_map().numpy())


def test_double_quantization_takes_the_nearest_code() -> None:
    """bitsandbytes finds it by a table on a CPU, and errs by at most one code where two are almost equally near."""
    weight = random_weight((640, 128))
    _, state = theirs(weight, nested=True)
    _, absmax = quantize_nf4(weight)
    ours = quantize_absmax(absmax)
    assert ours.codes.size % ABSMAX_BLOCK_SIZE == 0
    scaled = (absmax - ours.offset).reshape(-1, ABSMAX_BLOCK_SIZE).astype(np.float64) / ours.scales[:, None]
    distances = np.abs(scaled.reshape(-1, 1) - absmax_code_book())
    np.testing.assert_allclose(
        distances[np.arange(ours.codes.size), ours.codes], distances.min(axis=1), rtol=0, atol=6e-8
    )
    assert ours.offset == pytest.approx(state.offset.item(), rel=2e-7)
    np.testing.assert_allclose(ours.scales, state.state2.absmax.numpy(), rtol=1e-6)
    other = state.absmax.numpy() != ours.codes
    assert other.mean() < 0.01
    between = np.abs(distances[other, ours.codes[other]] - distances[other, state.absmax.numpy()[other]])
    assert between.max(initial=0) < 2 * 2 / 65536, "two places of the table"


def test_absmax_of_bitsandbytes_is_read_bit_for_bit() -> None:
    _, state = theirs(random_weight((640, 130)), nested=True)
    from bitsandbytes.functional import dequantize_blockwise

    expected = dequantize_blockwise(state.absmax, state.state2) + state.offset
    read = QuantizedAbsmax(state.absmax.numpy(), state.state2.absmax.numpy(), np.float32(state.offset.item()))
    np.testing.assert_array_equal(dequantize_absmax(read), expected.numpy())
