"""Evaluation, checkpoints and recomputed activations inside a training run, on every backend."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.jobs import Recorder, make_job, make_packed_job, random_rows, write_rows
from twintune.backends import load_backend, missing_packages
from twintune.backends.job import Evaluation, Lora, Optimizer, TrainJob
from twintune.converters.adapter import read_adapter
from twintune.converters.training_state import read_checkpoint

pytest.importorskip("torch", reason="makes its tiny models with torch")
BACKENDS = [name for name in ("cuda", "ascend") if not missing_packages(name)]
LOSS = 1e-5  # absolute, float32
TARGETS = ("q_proj", "down_proj")
DROPOUT = Lora(4, 8, 0.5, TARGETS)
STANDING_STILL = Optimizer(1e-12, 0.0, 0.9, 0.999, 1e-8, 1.0)


def trained(job: TrainJob, backend: str, **changes: object) -> Recorder:
    changed = replace(job, output_dir=job.output_dir / backend, **changes)  # type: ignore[arg-type]  # TrainJob's fields
    changed.output_dir.mkdir(parents=True)
    recorder = Recorder()
    load_backend(backend).train(changed, recorder)
    return recorder


def losses(recorder: Recorder) -> list[float]:
    return [step.loss for step in recorder.steps]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorder]:
    """Three steps that move nothing, with much dropout; five validation rows in batches of two."""
    folder = tmp_path_factory.mktemp("evaluated")
    job = make_job(folder, steps=3, layers=1, lora=DROPOUT, optimizer=STANDING_STILL)
    write_rows(job.rows, random_rows(5), "validation")
    return {name: trained(job, name, evaluation_steps=(1, 3), evaluation_batch=2) for name in BACKENDS}


def test_evaluation_draws_no_dropout(evaluated: dict[str, Recorder]) -> None:
    for recorder in evaluated.values():
        first, last = recorder.evaluations
        assert (first.step, last.step) == (1, 3)
        assert first.loss == pytest.approx(last.loss, abs=1e-6)
    same_rows = {tuple(step.tokens for step in recorder.steps) for recorder in evaluated.values()}
    assert len(same_rows) == 1


def test_evaluation_is_the_mean_over_all_validation_tokens(evaluated: dict[str, Recorder]) -> None:
    expected = sum(sum(label != -100 for label in labels[1:]) for _, labels in random_rows(5))
    first = [recorder.evaluations[0] for recorder in evaluated.values()]
    assert {one.tokens for one in first} == {expected}
    assert first[0].loss == pytest.approx(first[-1].loss, abs=LOSS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unpacked_rows_are_evaluated_by_a_network_for_packed_ones(
    backend: str, tmp_path: Path, evaluated: dict[str, Recorder]
) -> None:
    """The tiny model, its adapter and the validation rows are those of the unpacked job."""
    job = make_packed_job(tmp_path, steps=1, layers=1, lora=DROPOUT, optimizer=STANDING_STILL)
    write_rows(job.rows, random_rows(5), "validation")
    (one,) = trained(job, backend, evaluation_steps=(1,), evaluation_batch=3).evaluations
    assert one.loss == pytest.approx(evaluated[backend].evaluations[0].loss, abs=LOSS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_activations_change_nothing_and_checkpoints_hold_all(backend: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, accumulation=2, steps=4, layers=1, lora=Lora(4, 8, 0.0, TARGETS), checkpoint_steps=(2, 4))
    plain = trained(job, backend)
    recomputed = trained(replace(job, output_dir=tmp_path / "again"), backend, gradient_checkpointing=True)
    np.testing.assert_allclose(losses(recomputed), losses(plain), rtol=0, atol=1e-6)
    assert plain.checkpoints == [2, 4]
    run = job.output_dir / backend
    adapter, state = read_checkpoint(run / "checkpoint-4")
    _, final = read_adapter(run / "adapter")
    assert {name: tensor.tobytes() for name, tensor in adapter.items()} == {
        name: tensor.tobytes() for name, tensor in final.items()
    }
    assert (state.step, state.backend) == (4, backend)
    assert {name.partition(".")[0] for name in state.optimizer} == {"exp_avg", "exp_avg_sq"}
    assert all(array.any() for array in state.optimizer.values())


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert Evaluation(1, 2.0, 10, 0.1).perplexity == pytest.approx(np.exp(2.0))
    assert Evaluation(1, 1e9, 10, 0.1).perplexity == float("inf")
