"""Tensors where they lie in files: what they are is known without reading them, and each is read alone."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

WEIGHT_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
PIECE = 2**20  # numbers read at once where a tensor is not wanted whole


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its values.

    Attributes:
        dtype: of NumPy; bfloat16 is that of ml_dtypes.
        shape: as NumPy's, () for a number.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.count * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name} {list(self.shape)}"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: that holds it.
        spec: what it is.
        spans: offset and length in bytes of each part, in order; their lengths add up to spec.nbytes.
    """

    file: Path
    spec: TensorSpec
    spans: tuple[tuple[int, int], ...]

    def read(self) -> NDArray[Any]:
        """Its values, in memory of their own: of a mapped file, what was read would stay in memory too."""
        return self.read_as(self.spec.dtype)

    def read_as(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Its values rounded to `dtype`, with one piece more in memory than the result.

        Raises:
            OverflowError: for a number that is finite here and not in `dtype`.
        """
        values = np.empty(self.spec.count, dtype)
        start = 0
        for piece in self.pieces():
            values[start : start + piece.size] = rounded(piece, dtype)
            start += piece.size
        return values.reshape(self.spec.shape)

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Its values in C order, flat, PIECE numbers at a time."""
        with self.file.open("rb") as stream:
            size = PIECE * self.spec.dtype.itemsize
            for start in range(0, self.spec.nbytes, size):
                yield self._read_bytes(stream, start, min(start + size, self.spec.nbytes)).view(self.spec.dtype)

    def _read_bytes(self, stream: BufferedReader, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` to `stop` of the tensor, which may lie in several parts."""
        buffer = np.empty(stop - start, np.uint8)
        base = 0  # where a part begins within the tensor
        for offset, length in self.spans:
            first, last = max(start, base), min(stop, base + length)
            if first < last:
                stream.seek(offset + first - base)
                if stream.readinto(buffer[first - start : last - start].data) != last - first:
                    raise EOFError(f"{self.file}: ended while it was read; another program cuts it")
            base += length
        return buffer


def rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in another dtype, to the nearest, ties to even.

    Raises:
        OverflowError: for a number that is finite before and not after.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    if not (np.isfinite(result) | ~np.isfinite(values)).all():
        raise OverflowError(f"{float(np.abs(values[np.isfinite(values)]).max()):g} is too large for {dtype.name}")
    return result


def read_each(stored: Iterable[tuple[str, StoredTensor]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The values of each tensor by its name, one at a time."""
    for name, tensor in stored:
        yield name, tensor.read()


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order, little-endian as every format here stores them; no copy if they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
