"""Tensors where they lie in files: what they are is known without reading them, and each is read alone."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
        """Its values, read into memory of their own: a mapped file would count as memory up to its whole size."""
        buffer = np.empty(self.spec.nbytes, np.uint8)
        start = 0
        with self.file.open("rb", buffering=0) as stream:
            for offset, length in self.spans:
                stream.seek(offset)
                _fill(stream, buffer[start : start + length], self.file)
                start += length
        return buffer.view(self.spec.dtype).reshape(self.spec.shape)


def _fill(stream: Any, part: NDArray[np.uint8], file: Path) -> None:
    """Read all of `part`: the system gives at most 2 GiB at once."""
    view = memoryview(part)
    while view:
        got = stream.readinto(view)
        if not got:
            raise EOFError(f"{file}: ended while it was read; another program cuts it")
        view = view[got:]


def read_each(stored: Iterable[tuple[str, StoredTensor]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The values of each tensor by its name, one at a time."""
    for name, tensor in stored:
        yield name, tensor.read()


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order, little-endian as every format here stores them; no copy if they lie so."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
