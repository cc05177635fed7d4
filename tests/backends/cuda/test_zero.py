"""Two ranks under DeepSpeed's ZeRO do what one device does, at every stage."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from tests.backends.cuda.rank_series import TOLERANCE, alone, assert_same_figures, told_by_two
from tests.jobs import make_job, random_rows, write_rows
from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.backends.job import Lora, Parallel, TrainJob

if missing_packages("cuda") or not find_spec("deepspeed"):
    pytest.skip("trains with torch, peft and deepspeed", allow_module_level=True)

LORA = Lora(4, 8, 0.1, ("q_proj", "v_proj", "up_proj"))
STEPS = 10
pytestmark = [pytest.mark.cuda_alone, pytest.mark.slow]
STAGES = {1: Parallel(zero_stage=1), 2: Parallel(zero_stage=2), 3: Parallel(zero_stage=3, sharded=True)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """One device's job. Embeddings are tied, since the loss takes the head's weight by itself; they and the layers that
    feed forward have over 100,000 weights, as DeepSpeed shares none that has fewer."""
    folder = tmp_path_factory.mktemp("zero") / "plain"
    rhythm: dict[str, Any] = {"evaluation_steps": (8,), "checkpoint_steps": (6,), "snapshot_steps": (6,)}
    model = save_tiny_model(folder / "model", "qwen2", vocab_size=2048, intermediate_size=2048)
    job = make_job(folder, accumulation=2, steps=STEPS, model=model, lora=LORA, **rhythm)
    write_rows(job.rows, random_rows(5), "validation")
    return job


@pytest.fixture(scope="module")
def one(plain: TrainJob) -> dict[str, Any]:
    return alone(plain)


@pytest.fixture(scope="module")
def two(plain: TrainJob, one: dict[str, Any]) -> dict[str, Any]:
    """What both ranks were told, by job; None of a rank that was killed."""
    jobs = {f"stage {stage}": replace(plain, parallel=parallel) for stage, parallel in STAGES.items()}
    begun = replace(plain, resume_from=plain.checkpoint(6), steps_done=6)
    jobs |= {f"resumed {stage}": replace(begun, parallel=STAGES[stage]) for stage in (2, 3)}
    jobs["broken off"] = replace(plain, parallel=STAGES[3])
    return told_by_two(jobs, plain.output_dir.parent, DS_ACCELERATOR="cpu")


def assert_same_series(found: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    assert_same_figures(found, expected, first)
    (evaluation,), (whole,) = found["evaluations"], expected["evaluations"]
    assert evaluation["tokens"] == whole["tokens"]
    assert evaluation["loss"] == pytest.approx(whole["loss"], abs=TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_do_what_one_device_does(one: dict[str, Any], two: dict[str, Any], stage: int) -> None:
    for rank in two[f"stage {stage}"]:
        assert_same_series(rank, one)
    assert len({step["tokens"] for step in one["steps"]}) > 6, "steps of equal counts would prove little"
    assert max(step["grad_norm"] for step in one["steps"]) > 1.0, "a gradient that is never clipped would prove little"


@pytest.mark.parametrize(("stage", "weights"), [(1, 1.0), (2, 1.0), (3, 0.5)])
def test_each_rank_has_a_share(two: dict[str, Any], stage: int, weights: float) -> None:
    for rank in two[f"stage {stage}"]:
        assert rank["moments"] == pytest.approx(0.5, abs=0.01)  # of a length that DeepSpeed rounds up
        assert rank["share"] == weights


@pytest.mark.parametrize("stage", [2, 3])
def test_one_goes_on_with_two(one: dict[str, Any], two: dict[str, Any], stage: int) -> None:
    for rank in two[f"resumed {stage}"]:
        assert_same_series(rank, one, first=6)


@pytest.mark.parametrize("stage", STAGES)
def test_two_go_on_with_one(plain: TrainJob, one: dict[str, Any], two: dict[str, Any], stage: int) -> None:
    checkpoint = plain.output_dir.with_name(f"stage {stage}-0") / "checkpoint-6"
    folder = plain.output_dir.with_name(f"stage {stage}, then one")
    back = replace(plain, resume_from=checkpoint, steps_done=6, output_dir=folder)
    assert_same_series(alone(back), one, first=6)


def test_rank_0_alone_writes(plain: TrainJob, two: dict[str, Any]) -> None:
    for stage in STAGES:
        names = {path.name for path in plain.output_dir.with_name(f"stage {stage}-0").iterdir()}
        assert names == {"adapter", "checkpoint-6", "snapshots"}
        assert not plain.output_dir.with_name(f"stage {stage}-1").exists()


def test_a_rank_that_ends_inside_a_step_is_named(two: dict[str, Any]) -> None:
    left, killed = two["broken off"]
    assert killed is None
    (message,) = left["error"]
    assert message.startswith("rank 0: all ranks must answer, got nothing from 1 (")
