"""Liger's kernels compute what transformers' modules do: on a GPU, or interpreted on a CPU (see conftest.py)."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")
pytest.importorskip("liger_kernel", reason="the liger extra is not installed")

from tests.jobs import Recorder, make_job
from twintune.backends import load_backend

HAS_GPU = torch.cuda.is_available()
DEVICE, STEPS, LAYERS = ("cuda", 20, 2) if HAS_GPU else ("cpu", 4, 1)  # an interpreted step takes half a second
LOSS = 1e-5  # of a step in float32, relative: the norm's sums have another order


@pytest.fixture(scope="module", autouse=True)
def triton() -> Iterator[None]:
    """Without a GPU the kernels are interpreted, and what Triton's interpreter has not is given to them."""
    if HAS_GPU:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        import triton.language as tl
        from liger_kernel.ops import rms_norm
        from triton.runtime import interpreter

        as_tensor = interpreter._implicit_cvt

        def as_tensor_or_float(argument: Any) -> Any:
            if not isinstance(argument, float):
                return as_tensor(argument)
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)

        patch.setattr(interpreter, "_implicit_cvt", as_tensor_or_float)  # arguments of its own kernels are no floats
        patch.setattr(rms_norm, "rsqrt", lambda x: tl.rsqrt(x))  # libdevice is compiled for GPUs
        yield


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_losses_are_those_without_it_and_other_models_go_without(tmp_path: Path, family: str) -> None:
    modeling = import_module(f"transformers.models.{family}.modeling_{family}")
    before = dict(vars(modeling))
    job = replace(make_job(tmp_path, family, steps=STEPS, layers=LAYERS), device=DEVICE)
    losses = []
    for use_liger_kernel in (False, True):
        recorder = Recorder()
        output_dir = tmp_path / str(use_liger_kernel)
        load_backend("cuda").train(replace(job, use_liger_kernel=use_liger_kernel, output_dir=output_dir), recorder)
        losses.append([step.loss for step in recorder.steps])
    np.testing.assert_allclose(losses[1], losses[0], rtol=LOSS)
    assert losses[1] != losses[0], "Liger's kernels were not taken"
    assert vars(modeling) == before, "other models of the process would have them"
