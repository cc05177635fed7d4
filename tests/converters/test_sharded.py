import filecmp
import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.converters.sharded import (
    INDEX,
    parse_shard_size,
    plan_shards,
    read_sharded,
    write_index,
    write_sharded,
)
from twintune.converters.stored_tensors import WEIGHT_DTYPES, TensorSpec, read_each
from twintune.errors import UserError

METADATA = {"format": "pt"}
Tensors = dict[str, NDArray[Any]]


def specs_of(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def some_tensors() -> Tensors:
    draw = np.random.default_rng(0)
    return {
        "large": draw.normal(size=(40, 50)).astype(np.float32),
        "half": draw.normal(size=(7, 3)).astype(np.float16),
        "brain": draw.normal(size=(5, 9)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
        "empty": np.empty((0, 4), np.float32),
        "last": draw.normal(size=(11,)).astype(np.float32),
    }


@pytest.mark.parametrize("max_shard_size", [10**6, 200, 1])
def test_what_is_written_is_read_and_safetensors_reads_it_too(tmp_path: Path, max_shard_size: int) -> None:
    from safetensors.numpy import load_file

    tensors = some_tensors()
    in_any_order = reversed(tensors.items())
    weight_map = write_sharded(tmp_path, in_any_order, specs_of(tensors), max_shard_size, METADATA)
    files = sorted(tmp_path.iterdir())
    assert {file.name for file in files} == set(weight_map.values())
    assert (len(files) > 1) == (max_shard_size < 10**6)
    theirs: Tensors = {}
    for file in files:
        theirs |= load_file(file)
    for read in (theirs, dict(read_each(read_sharded(files).items()))):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert str(read[name].dtype) == str(tensor.dtype)  # MindSpore registers a bfloat16 of its own
            assert read[name].shape == tensor.shape
            assert read[name].tobytes() == tensor.tobytes()


@pytest.mark.skipif(bool(missing_packages("cuda")), reason="transformers saves models of torch")
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB", "20KB"])  # the last is less than an embedding
def test_the_files_are_those_of_transformers(tmp_path: Path, dtype: str, max_shard_size: str) -> None:
    import torch
    import transformers

    folder = save_tiny_model(tmp_path / "model", "qwen2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    model.save_pretrained(theirs, max_shard_size=max_shard_size)
    stored = read_sharded(sorted(theirs.glob("*.safetensors")))
    names_in_order = [name for name in model.state_dict() if name in stored]
    if int(transformers.__version__.partition(".")[0]) >= 5:
        names_in_order.sort()  # transformers 5 sorts them first (revert_weight_conversion)
    specs = {name: stored[name].spec for name in names_in_order}
    ours.mkdir()
    weight_map = write_sharded(ours, read_each(stored.items()), specs, parse_shard_size(max_shard_size), METADATA)
    write_index(ours, weight_map, specs)
    names = {file.name for file in theirs.iterdir() if "safetensors" in file.name}
    assert names == {file.name for file in ours.iterdir()}
    assert (INDEX in names) == (max_shard_size != "5GB")
    assert filecmp.cmpfiles(theirs, ours, names, shallow=False)[1:] == ([], [])


def test_shards_are_shared_out_as_transformers_does() -> None:
    sizes = {"a": 6, "b": 6, "c": 2, "d": 30, "e": 6, "f": 2, "g": 2}
    specs = {name: TensorSpec(np.dtype(np.uint8), (size,)) for name, size in sizes.items()}
    assert plan_shards(specs, 10) == [["a"], ["d"], ["b", "c"], ["e", "f", "g"]]


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("200KB", 200_000)])
def test_a_shard_size_is_spelled_as_in_transformers(text: str, size: int) -> None:
    assert parse_shard_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "0GB", "-1GB", "5GiB", "many"])
def test_other_shard_sizes_are_told(text: str) -> None:
    with pytest.raises(UserError, match="--max-shard-size must be a size such as 5GB"):
        parse_shard_size(text)


def test_what_differs_from_the_plan_is_told_at_once(tmp_path: Path) -> None:
    tensors = some_tensors()
    given = [
        ("large", tensors["large"].T),
        ("half", tensors["half"].astype(np.float32)),
        ("brain", tensors["brain"]),
        ("brain", tensors["brain"]),
        ("other", tensors["brain"]),
        ("scalar", tensors["scalar"]),
        ("empty", tensors["empty"]),
    ]
    with pytest.raises(UserError) as caught:
        write_sharded(tmp_path, given, specs_of(tensors), 10**6, METADATA)
    assert [message.removeprefix(f"{tmp_path}: ") for message in caught.value.messages] == [
        "large must be float32 [40, 50], got float32 [50, 40]",
        "half must be float16 [7, 3], got float32 [7, 3]",
        "brain must be given once and be in the plan, got it otherwise",
        "other must be given once and be in the plan, got it otherwise",
        "last must be given, got no such tensor",
    ]


def test_broken_files_are_told_at_once(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_sharded(tmp_path, tensors.items(), specs_of(tensors), 10**6, METADATA)
    whole, torn, odd = (tmp_path / name for name in ("model.safetensors", "torn.safetensors", "odd.safetensors"))
    torn.write_bytes(whole.read_bytes()[:-1])
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    odd.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError) as caught:
        read_sharded([torn, odd, whole, tmp_path / "absent.safetensors"])
    first, second, third = caught.value.messages
    assert first.startswith(f"{torn}: must be a whole safetensors file, got:")
    assert second.startswith(f"{odd}: x must have one of the dtypes BOOL, ")
    assert third.startswith(f"{tmp_path / 'absent.safetensors'}: must be a whole safetensors file, got:")


def test_a_file_cut_after_it_was_opened_is_no_tensor(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_sharded(tmp_path, tensors.items(), specs_of(tensors), 10**6, METADATA)
    stored = read_sharded([tmp_path / "model.safetensors"])
    os.truncate(tmp_path / "model.safetensors", 700)
    with pytest.raises(EOFError, match=r"model\.safetensors: ended while it was read"):
        list(read_each(stored.items()))
