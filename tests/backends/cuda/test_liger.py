"""Liger's kernels compute what transformers' own modules do, where a GPU is."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")
pytest.importorskip("liger_kernel", reason="the liger extra is not installed")

from dataclasses import replace

from tests.jobs import Recorder, make_job
from twintune.backends import load_backend

LOSS = 1e-4  # of 20 steps in float32, relative: the norm's sums have another order


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton needs a GPU")
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_losses_are_those_without_it(tmp_path: Path, family: str) -> None:
    job = replace(make_job(tmp_path, family), device="cuda")
    losses = []
    for use_liger_kernel in (False, True):
        recorder = Recorder()
        output_dir = tmp_path / str(use_liger_kernel)
        load_backend("cuda").train(replace(job, use_liger_kernel=use_liger_kernel, output_dir=output_dir), recorder)
        losses.append([step.loss for step in recorder.steps])
    np.testing.assert_allclose(losses[1], losses[0], rtol=LOSS)
