from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from twintune.backends import missing_packages
from twintune.converters import mindspore_checkpoint
from twintune.converters.mindspore_checkpoint import read_checkpoint, write_checkpoint
from twintune.errors import UserError

if not missing_packages("ascend"):
    from twintune.backends.ascend.runtime import import_quietly

    import_quietly()
needs_mindspore = pytest.mark.skipif(bool(missing_packages("ascend")), reason="mindspore is not installed")
Tensors = dict[str, NDArray[Any]]


def some_tensors() -> Tensors:
    draw = np.random.default_rng(0)
    return {
        "a.weight": draw.normal(size=(40, 50)).astype(np.float32),
        "half": draw.normal(size=(7, 3)).astype(np.float16),
        "brain": draw.normal(size=(5, 9)).astype(ml_dtypes.bfloat16),
        "global_step": np.array([300], np.int32),
        "scale": np.array(65536, np.float32),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "some.ckpt", some_tensors().items())
    return tmp_path / "some.ckpt"


def assert_same(read: Tensors, expected: Tensors) -> None:
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert read[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("part", [2**29, 1000, 7])  # 7: numbers are cut too
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(mindspore_checkpoint, "PART", part)
    write_checkpoint(tmp_path / "some.ckpt", some_tensors().items())
    stored = read_checkpoint(tmp_path / "some.ckpt")
    assert (len(stored["a.weight"].spans) > 1) == (part < 8000)
    assert_same({name: tensor.read() for name, tensor in stored.items()}, some_tensors())


@needs_mindspore
def test_the_file_is_that_of_mindspore_byte_for_byte(tmp_path: Path, checkpoint: Path) -> None:
    import mindspore as ms

    parameters = []
    for name, array in some_tensors().items():
        tensor = ms.Tensor(array.astype(np.float32)) if name == "brain" else ms.Tensor(array)
        parameters.append({"name": name, "data": tensor.astype(ms.bfloat16) if name == "brain" else tensor})
    ms.save_checkpoint(parameters, str(tmp_path / "theirs.ckpt"))
    assert checkpoint.read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


@needs_mindspore
@pytest.mark.parametrize("part", [2**29, 1000])
def test_mindspore_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    import mindspore as ms

    monkeypatch.setattr(mindspore_checkpoint, "PART", part)
    write_checkpoint(tmp_path / "some.ckpt", some_tensors().items())
    loaded = ms.load_checkpoint(str(tmp_path / "some.ckpt"))
    assert str(loaded["brain"].dtype) == "BFloat16"
    widened = {name: ms.Tensor(value).astype(ms.float32).asnumpy() for name, value in loaded.items()}
    assert_same(widened, {name: tensor.astype(np.float32) for name, tensor in some_tensors().items()})


@needs_mindspore
def test_texts_numbers_and_checksums_of_mindspore_are_read(tmp_path: Path) -> None:
    import mindspore as ms

    file = tmp_path / "some.ckpt"
    more = {"note": "hello", "epoch_num": 3, "ended": True}
    parameters = [{"name": "a", "data": ms.Tensor(np.ones((2, 3), np.float32))}]
    ms.save_checkpoint(parameters, str(file), append_dict=more, crc_check=True)
    read = {name: tensor.read() for name, tensor in read_checkpoint(file).items()}
    assert {name: read[name].item() for name in more} == more
    assert np.array_equal(read["a"], np.ones((2, 3), np.float32))
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(1).tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="bytes that do not have the checksum at its end"):
        read_checkpoint(file)


def test_every_cut_is_told(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    stored = read_checkpoint(checkpoint)
    ends = [tensor.spans[-1][0] + tensor.spans[-1][1] for tensor in stored.values()]  # cut there, whole values are left
    for length in {*range(60), *range(8000, len(content))} - set(ends):
        checkpoint.write_bytes(content[:length])
        with pytest.raises(UserError, match="must be a whole MindSpore checkpoint"):
            read_checkpoint(checkpoint)


def test_bytes_of_any_kind_are_no_surprise(tmp_path: Path, checkpoint: Path) -> None:
    """A checkpoint comes from anywhere: what is wrong in it is a UserError, and nothing else."""
    draw = np.random.default_rng(0)
    content = checkpoint.read_bytes()
    structure = [number for number in range(len(content)) if number < 60 or number > 8000]
    file = tmp_path / "odd.ckpt"
    told = 0
    for _ in range(500):
        changed = bytearray(content)
        changed[draw.choice(structure)] = draw.integers(256)
        file.write_bytes(changed)
        try:
            for tensor in read_checkpoint(file).values():
                assert tensor.read().nbytes == tensor.spec.nbytes
        except UserError:
            told += 1
    assert told > 100


def test_all_that_is_no_tensor_is_told_at_once(tmp_path: Path) -> None:
    """Written by hand from the wire format: a map, an unknown dtype, a wrong size, a name that comes again."""

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128  # one byte of length
        return bytes([number << 3 | 2, len(content)]) + content

    def value(name: bytes, kind: bytes, shape: bytes, content: bytes) -> bytes:
        return field(1, field(1, name) + field(2, shape + field(2, kind) + field(3, content)))

    two = bytes([1 << 3, 2])  # a shape of [2]
    file = tmp_path / "odd.ckpt"
    file.write_bytes(
        value(b"good", b"Float32", two, bytes(8))
        + field(1, field(1, b"map") + field(3, b""))
        + value(b"four bits", b"Int4", two, bytes(1))
        + value(b"short", b"Float32", two, bytes(7))
        + value(b"good", b"Float32", two, bytes(8))
    )
    with pytest.raises(UserError) as caught:
        read_checkpoint(file)
    rules = [message.removeprefix(f"{file}: ") for message in caught.value.messages]
    assert rules[0] == "map must be a tensor, got a map or nothing"
    assert rules[1] == "good must be there once, got it again"
    assert rules[2].startswith("four bits must have one of the dtypes Bool, ")
    assert rules[3] == "short must be 8 bytes for float32 [2], got 7"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip, as torch writes", b"\x80\x04 a pickle"])
def test_what_is_no_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.ckpt: must be a whole MindSpore checkpoint, not encrypted, got"):
        read_checkpoint(tmp_path / "odd.ckpt")


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.ckpt: must be a checkpoint that can be read"):
        read_checkpoint(tmp_path / "absent.ckpt")
