"""MindSpore's `.ckpt` files, read and written without MindSpore, one tensor in memory at a time.

A file is the protobuf message of mindspore/train/checkpoint.proto: a repeated Checkpoint.Value, so that values
written one after another are the whole message. MindSpore's own functions hold all of them at once.

    message Checkpoint { repeated Value value = 1; }
    message Value { required string tag = 1; oneof { TensorProto tensor = 2; MapTensorProto maptensor = 3; } }
    message TensorProto { repeated int64 dims = 1; required string tensor_type = 2; required bytes tensor_content = 3; }

Wire format: https://protobuf.dev/programming-guides/encoding. Nothing in a file is run.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from twintune.converters.stored_tensors import StoredTensor, TensorSpec, raw_bytes
from twintune.errors import UserError, raise_collected

DTYPES: dict[str, np.dtype[Any]] = {
    "Bool": np.dtype(np.bool_),
    "Int8": np.dtype(np.int8),
    "UInt8": np.dtype(np.uint8),
    "Int16": np.dtype(np.int16),
    "UInt16": np.dtype(np.uint16),
    "Int32": np.dtype(np.int32),
    "UInt32": np.dtype(np.uint32),
    "Int64": np.dtype(np.int64),
    "UInt64": np.dtype(np.uint64),
    "Float16": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Float32": np.dtype(np.float32),
    "Float64": np.dtype(np.float64),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
TEXT = "str"  # kept as four bytes a character
PART = 512 * 2**20  # bytes of a tensor in one value, as MindSpore cuts; protobuf allows 2 GiB
LONGEST_NAME = 4096  # bytes
# crc_check=True of mindspore.save_checkpoint appends this, then the checksum in ten bytes.
CHECKSUM_MARK = b"crc_num"
CHECKSUM_SIZE = len(CHECKSUM_MARK) + 10
VARINT, BYTES = 0, 2


def write_checkpoint(path: Path, tensors: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write a `.ckpt` that mindspore.load_checkpoint reads.

    Args:
        path: file to write; new_file makes it whole or absent.
        tensors: by parameter name; one is held at a time.
    """
    with path.open("wb") as stream:
        for name, tensor in tensors:
            content = raw_bytes(tensor)
            head = b"".join(_number(1, size) for size in tensor.shape)
            head += _prefix(2, len(DTYPE_NAMES[tensor.dtype])) + DTYPE_NAMES[tensor.dtype].encode()
            for start in range(0, max(len(content), 1), PART):
                _write_value(stream, name.encode(), head, content[start : start + PART])


def _write_value(stream: BinaryIO, tag: bytes, head: bytes, content: memoryview) -> None:
    before_content = head + _prefix(3, len(content))
    tensor_prefix = _prefix(2, len(before_content) + len(content))
    before_tensor = _prefix(1, len(tag)) + tag + tensor_prefix
    value_prefix = _prefix(1, len(before_tensor) + len(before_content) + len(content))
    stream.write(value_prefix + before_tensor + before_content)
    stream.write(content)


def _prefix(field: int, length: int) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(length)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Where each parameter of a `.ckpt` lies, without reading one; texts have a dtype of their length.

    Raises:
        UserError: for a file that is torn or no checkpoint, and for everything in it that is no whole tensor.
    """
    try:
        with path.open("rb") as stream:
            return _Reader(path, stream).read()
    except OSError as error:
        raise UserError(f"{path}: must be a checkpoint that can be read, got: {error.strerror}") from None
    except _Broken as error:
        raise UserError(
            f"{path}: must be a whole MindSpore checkpoint, not encrypted, got {error}; write it anew"
        ) from None


class _Broken(Exception):
    """The file is not the message it should be."""


class _Reader:
    """One pass over a checkpoint's structure; the contents of tensors are passed over."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = stream.seek(0, 2)
        self.types: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.spans: dict[str, list[tuple[int, int]]] = {}
        self.problems: list[str] = []

    def read(self) -> dict[str, StoredTensor]:
        end = self._end_of_values()
        last = ""
        for field, value in self._fields(0, end):
            if field != 1 or isinstance(value, int):
                raise _Broken(f"field {field} where a parameter should begin")
            last = self._add(*value, last)
        stored = {name: self._stored(name) for name in self.spans}
        raise_collected(self.problems)
        if not stored:
            raise _Broken("no parameter")
        return {name: tensor for name, tensor in stored.items() if tensor is not None}

    def _end_of_values(self) -> int:
        """Where the message ends; a checksum after it is checked."""
        end = self.size - CHECKSUM_SIZE
        if end < 0 or self._bytes(end, len(CHECKSUM_MARK)) != CHECKSUM_MARK:
            return self.size
        wanted = int.from_bytes(self._bytes(self.size - 10, 10), "big")
        self.stream.seek(0)
        checksum = 0
        for start in range(0, end, 2**20):
            checksum = zlib.crc32(self.stream.read(min(2**20, end - start)), checksum)
        if checksum != wanted:
            raise _Broken("bytes that do not have the checksum at its end")
        return end

    def _add(self, start: int, length: int, last: str) -> str:
        """Take in one value; what is too large for one comes in several, one after another. Returns its name."""
        parts = dict(self._fields(start, start + length))
        name = self._text(parts.get(1))
        tensor = parts.get(2)
        if not isinstance(tensor, tuple):
            self.problems.append(f"{self.path}: {name} must be a tensor, got a map or nothing")
            return name
        shape, kind, content = self._tensor(*tensor)
        if name in self.spans and (name != last or self.types[name] != (kind, shape)):
            self.problems.append(f"{self.path}: {name} must be there once, got it again")
            return name
        self.types[name] = (kind, shape)
        self.spans.setdefault(name, []).append(content)
        return name

    def _tensor(self, start: int, length: int) -> tuple[tuple[int, ...], str, tuple[int, int]]:
        shape: list[int] = []
        kind, content = "", None
        for field, value in self._fields(start, start + length):
            if field == 1 and isinstance(value, int):
                shape.append(value)
            elif field == 2:
                kind = self._text(value)
            elif field == 3 and not isinstance(value, int):
                content = value
        if content is None:
            raise _Broken("a tensor without content")
        if max(shape, default=0) > self.size:
            raise _Broken(f"a tensor of shape {shape}")
        return () if shape == [0] else tuple(shape), kind, content

    def _stored(self, name: str) -> StoredTensor | None:
        kind, shape = self.types[name]
        spans = tuple(self.spans[name])
        size = sum(length for _, length in spans)
        if kind == TEXT and size % 4 == 0:
            return StoredTensor(self.path, TensorSpec(np.dtype(f"<U{size // 4}"), ()), spans)
        if kind not in DTYPES:
            self.problems.append(f"{self.path}: {name} must have one of the dtypes {', '.join(DTYPES)}, got {kind!r}")
            return None
        spec = TensorSpec(DTYPES[kind], shape)
        if size != spec.nbytes:
            self.problems.append(f"{self.path}: {name} must be {spec.nbytes} bytes for {spec}, got {size}")
            return None
        return StoredTensor(self.path, spec, spans)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
        """The fields of the message in these bytes: number, and its integer or where its bytes lie."""
        while start < end:
            key, start = self._read_varint(start, end)
            number, start = self._read_varint(start, end)
            if key & 7 == VARINT:
                yield key >> 3, number
            elif key & 7 == BYTES and number <= end - start:
                yield key >> 3, (start, number)
                start += number
            else:
                raise _Broken(f"bytes at {start} that are no field of it, or end too early")

    def _read_varint(self, start: int, end: int) -> tuple[int, int]:
        """An integer of up to 64 bits, and where the next thing begins."""
        value = 0
        for position, byte in enumerate(self._bytes(start, min(10, end - start))):
            value |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                return value, start + position + 1
        raise _Broken(f"bytes at {start} that are no number")

    def _text(self, place: int | tuple[int, int] | None) -> str:
        if not isinstance(place, tuple) or place[1] > LONGEST_NAME:
            raise _Broken("a parameter without a name, or with one that is too long")
        try:
            return self._bytes(*place).decode()
        except UnicodeDecodeError:
            raise _Broken("a name that is no UTF-8 text") from None

    def _bytes(self, start: int, length: int) -> bytes:
        self.stream.seek(start)
        return self.stream.read(length)
