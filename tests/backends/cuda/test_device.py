"""Device and dtype are chosen once, with a reason, or refused with a remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")

import torch

from twintune.backends.cuda import CudaBackend
from twintune.errors import UserError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


def test_importing_the_backend_does_not_import_torch() -> None:
    program = "import sys, twintune.backends.cuda; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_cpu_as_asked() -> None:
    assert CudaBackend().choose_device("cpu").value == "cpu"


@without_gpu
def test_auto_without_a_gpu_is_the_cpu_in_float32() -> None:
    device = CudaBackend().choose_device("auto")
    dtype = CudaBackend().choose_dtype("auto", device.value)
    assert (device.value, dtype.value) == ("cpu", "float32")
    assert "finds no CUDA device" in device.reason
    assert "TF32 is off" in dtype.reason


@with_gpu
def test_auto_with_a_gpu_is_the_gpu() -> None:
    device = CudaBackend().choose_device("auto")
    dtype = CudaBackend().choose_dtype("auto", device.value)
    assert device.value == "cuda"
    assert dtype.value == ("bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32")


@without_gpu
def test_a_gpu_that_is_not_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"got cuda; .*--device cpu"):
        CudaBackend().choose_device("cuda")


def test_an_npu_belongs_to_the_other_backend() -> None:
    with pytest.raises(UserError, match=r"got npu; .*--backend ascend"):
        CudaBackend().choose_device("npu")


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_a_dtype_as_asked(asked: str) -> None:
    choice = CudaBackend().choose_dtype(asked, "cpu")
    assert choice.value == asked
    assert choice.reason.startswith("as asked")


@pytest.mark.parametrize("asked", ["auto", "static"])
def test_the_cache_is_static(tmp_path: Path, asked: str) -> None:
    assert CudaBackend().choose_cache(asked, tmp_path, None, "cpu", "float32").value == "static"


def test_a_paged_cache_belongs_to_the_other_backend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be auto or static with --backend cuda, got 'paged'"):
        CudaBackend().choose_cache("paged", tmp_path, None, "cpu", "float32")


def test_on_a_cpu_the_process_own_memory_counts() -> None:
    assert CudaBackend().peak_memory("cpu") is None


@with_gpu
def test_peak_memory_of_a_gpu_is_in_bytes() -> None:
    torch.empty(2**24, dtype=torch.uint8, device="cuda")
    peak = CudaBackend().peak_memory("cuda")
    assert peak is not None
    assert peak >= 2**24
