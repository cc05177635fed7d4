"""P-tuning v2 is the same job on both backends: losses, evaluations, prefixes, checkpoints and texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.jobs import Recorder, make_job, random_rows, write_rows
from twintune.backends import load_backend, missing_packages
from twintune.backends.job import PrefixTuning, TrainJob
from twintune.converters.adapter import read_any_adapter

pytestmark = pytest.mark.skipif(
    bool(missing_packages("cuda") or missing_packages("ascend")), reason="both frameworks are not installed"
)

STEPS, HALF = 4, 2
PREFIX = PrefixTuning(5, None, num_layers=2, num_attention_heads=2, token_dim=32)
LOSS = 1e-5  # absolute, in float32


class Trained(NamedTuple):
    """A job that ran on both backends, and what was logged there."""

    job: TrainJob
    cuda: Recorder
    ascend: Recorder


def train(job: TrainJob, backend: str) -> Recorder:
    job = replace(job, output_dir=job.output_dir.with_name(backend))
    job.output_dir.mkdir()
    log = Recorder()
    load_backend(backend).train(job, log)
    return log


@pytest.fixture(scope="module", params=[("qwen2", 2, None), ("llama", 1, 12)], ids=["qwen2", "llama-projected"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    family, layers, hidden = request.param
    folder = tmp_path_factory.mktemp(family)
    prefix = replace(PREFIX, num_layers=layers, encoder_hidden_size=hidden)
    write_rows(folder / "rows", random_rows()[:6], "validation")
    when: dict[str, Any] = {"evaluation_steps": (HALF,), "checkpoint_steps": (HALF,), "evaluation_batch": 2}
    job = make_job(folder, family, accumulation=2, steps=STEPS, layers=layers, adapter=prefix, **when)
    return Trained(job, train(job, "cuda"), train(job, "ascend"))


def test_losses_gradient_norms_and_evaluations_agree(trained: Trained) -> None:
    for field in ("loss", "grad_norm", "tokens"):
        one, other = ([getattr(step, field) for step in log.steps] for log in (trained.cuda, trained.ascend))
        np.testing.assert_allclose(one, other, rtol=0, atol=LOSS)
    (on_cuda,), (on_ascend,) = trained.cuda.evaluations, trained.ascend.evaluations
    assert on_cuda.tokens == on_ascend.tokens
    assert abs(on_cuda.loss - on_ascend.loss) < LOSS


@pytest.mark.parametrize("name", [f"checkpoint-{HALF}", "adapter"])
def test_prefixes_agree(trained: Trained, name: str) -> None:
    folders = [trained.job.output_dir.with_name(backend) / name for backend in ("cuda", "ascend")]
    (told, one), (same, other) = (read_any_adapter(folder, to_train=True) for folder in folders)
    assert told == same == trained.job.adapter
    assert one.keys() == other.keys()
    for tensor, expected in one.items():
        # Adam divides by the root of squares: where a gradient is near zero, its rounding moves a step of 0.01.
        assert np.quantile(np.abs(other[tensor] - expected), 0.95) < 1e-4, tensor


def test_greedy_texts_are_the_same_from_either_adapter(trained: Trained) -> None:
    job = trained.job
    prompts = [[1, 40, 41, 42, 43], [1, 99]]
    logits: dict[str, list[Any]] = {}
    for backend in ("cuda", "ascend"):
        model = load_backend(backend).load_model(
            job.model, job.output_dir.with_name("ascend") / "adapter", pad_token_id=0, device="cpu", dtype="float32"
        )
        steps = [model.start(prompts, 4)]
        for _ in range(3):
            steps.append(model.step(steps[-1].argmax(axis=1)))
        logits[backend] = steps
    np.testing.assert_allclose(logits["ascend"], logits["cuda"], rtol=0, atol=5e-5)


def test_a_run_begun_on_pytorch_goes_on_on_mindspore(trained: Trained, tmp_path: Path) -> None:
    if trained.job.adapter != PREFIX:
        pytest.skip("one resumed run is enough, of the prefix that is trained as it is")
    checkpoint = trained.job.output_dir.with_name("cuda") / f"checkpoint-{HALF}"
    rest = replace(trained.job, output_dir=tmp_path / "rest", resume_from=checkpoint, steps_done=HALF)
    rest = replace(rest, evaluation_steps=(), checkpoint_steps=())
    losses = [step.loss for step in train(rest, "ascend").steps]
    np.testing.assert_allclose(losses, [step.loss for step in trained.cuda.steps[HALF:]], rtol=0, atol=LOSS)
