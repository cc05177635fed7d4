"""NF4, the 4-bit numbers of QLoRA (Dettmers et al. 2023, arXiv:2305.14314), with bitsandbytes' numbers bit for bit.

A weight is cut into blocks of 64 numbers, row after row. Each block is divided by its largest absolute value, absmax,
and each quotient becomes the index of the nearest of 16 numbers. Double quantization keeps absmax in 8 bits as well.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 64
ABSMAX_BLOCK_SIZE = 256
# Quantiles of a normal distribution, from the paper's appendix E, with a 0 among them.
CODE_BOOK = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
SMALLEST = np.float32(1e-38)  # what bitsandbytes divides by where a block is all zeros
PIECE = 2**14  # blocks worked on at once: some 4 MiB


@dataclass(frozen=True)
class QuantizedAbsmax:
    """Absmax in 8 bits: ABSMAX_BLOCK_SIZE of them share a scale, after their mean is taken off.

    Attributes:
        codes: indices into absmax_code_book(), uint8 [blocks].
        scales: largest absolute values, float32 [ceil(blocks / ABSMAX_BLOCK_SIZE)].
        offset: the mean.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offset: np.float32


def quantize_nf4(
    weight: NDArray[np.float32], block_size: int = BLOCK_SIZE
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The codes of a weight, and what they are multiplied by.

    Args:
        weight: float32 of any shape; what is float16 or bfloat16 elsewhere comes as exact float32.
        block_size: numbers that share an absmax; the last block may be shorter.

    Returns:
        Codes, two in a byte with the first in the high half, uint8 [ceil(size / 2)], and absmax,
        float32 [ceil(size / block_size)].
    """
    flat = np.ravel(weight)
    indices = np.empty(flat.size, np.uint8)
    absmax = np.empty(-(-flat.size // block_size), np.float32)
    whole = flat.size // block_size
    blocks = flat[: whole * block_size].reshape(whole, block_size)
    for start in range(0, whole, PIECE):
        part = blocks[start : start + PIECE]
        largest = absmax[start : start + len(part)]
        np.abs(part).max(axis=1, out=largest)
        scaled = part * (np.float32(1) / np.maximum(largest, SMALLEST))[:, None]
        indices[start * block_size : (start + len(part)) * block_size] = _nearest(CODE_BOOK, scaled.ravel())
    if flat.size % block_size:
        rest = flat[whole * block_size :]
        absmax[-1] = max(np.abs(rest).max(), SMALLEST)  # bitsandbytes divides by it here, and multiplies above
        indices[whole * block_size :] = _nearest(CODE_BOOK, rest / absmax[-1])
    if flat.size % 2:
        indices = np.append(indices, _nearest(CODE_BOOK, np.zeros(1, np.float32)))
    codes: NDArray[np.uint8] = indices[0::2] << np.uint8(4) | indices[1::2]
    return codes, absmax


def dequantize_nf4(
    codes: NDArray[np.uint8], absmax: NDArray[np.float32], shape: tuple[int, ...], block_size: int = BLOCK_SIZE
) -> NDArray[np.float32]:
    """The weight that codes stand for, float32 of `shape`; see quantize_nf4."""
    size = math.prod(shape)
    indices = np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)[:size]
    weight: NDArray[np.float32] = CODE_BOOK[indices] * np.repeat(absmax, block_size)[:size]
    return weight.reshape(shape)


def quantize_absmax(absmax: NDArray[np.float32]) -> QuantizedAbsmax:
    """Absmax in 8 bits, each as the nearest code.

    bitsandbytes differs in the last bit of the mean, which it sums up in an order that depends on the processor, and on
    a CPU in one code of 600, as it finds the nearest by a table of 65,536 places.
    """
    offset = np.float32(absmax.mean(dtype=np.float64))
    centred = absmax - offset
    starts = np.arange(0, absmax.size, ABSMAX_BLOCK_SIZE)
    scales = np.maximum.reduceat(np.abs(centred), starts)
    divisors = np.repeat(np.maximum(scales, SMALLEST), ABSMAX_BLOCK_SIZE)[: absmax.size]
    return QuantizedAbsmax(_nearest(absmax_code_book(), centred / divisors), scales, offset)


def dequantize_absmax(quantized: QuantizedAbsmax) -> NDArray[np.float32]:
    """The absmax that codes stand for, float32 [blocks]."""
    scales = np.repeat(quantized.scales, ABSMAX_BLOCK_SIZE)[: quantized.codes.size]
    return absmax_code_book()[quantized.codes] * scales + quantized.offset


@cache
def absmax_code_book() -> NDArray[np.float32]:
    """The 256 numbers of signed dynamic 8-bit codes, float32, sorted (Dettmers 2016, arXiv:1511.04561).

    For each power of ten from 1e-6 to 1 the middles of 1, 2, 4, ... equal parts of 0.1 to 1, and the same below zero.
    """
    numbers = [np.array([0, 1], np.float32)]
    for exponent in range(7):
        parts = 2**exponent
        step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(parts))
        places = np.arange(parts + 1)
        # As torch.linspace: the lower half counted from below, the upper half from above, each rounded once.
        borders = np.where(places < (parts + 1) // 2, np.float32(0.1) + step * places, 1 - step * (parts - places))
        borders = borders.astype(np.float32)
        middles = np.float32(10.0 ** (exponent - 6)) * ((borders[:-1] + borders[1:]) / np.float32(2))
        numbers += [middles, -middles]
    return np.sort(np.concatenate(numbers))


def _nearest(sorted_numbers: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of the nearest number; of the lower one for a value halfway."""
    halfway = (sorted_numbers[:-1] + sorted_numbers[1:]) / np.float32(2)
    return np.searchsorted(halfway, values, side="left").astype(np.uint8)
