from dataclasses import replace
from typing import Any

import pytest

from tests.backends.cuda.rank_series import TOLERANCE, alone, assert_same_figures, told_by_two
from tests.jobs import make_job, make_packed_job, random_rows, write_rows
from twintune.backends import missing_packages
from twintune.backends.job import Lora, Parallel, TrainJob

if missing_packages("cuda"):
    pytest.skip("trains with torch and peft", allow_module_level=True)

LORA = Lora(4, 8, 0.1, ("q_proj", "v_proj", "up_proj"))
pytestmark = pytest.mark.cuda_alone


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainJob]:
    """One device's jobs by name; each has a folder of its own."""
    folder = tmp_path_factory.mktemp("ranks")
    plain = make_job(folder / "plain", accumulation=2, lora=LORA, evaluation_steps=(10, 20), checkpoint_steps=(8, 20))
    write_rows(plain.rows, random_rows(5), "validation")
    packed = make_packed_job(folder / "packed", accumulation=2, model=plain.model, lora=LORA)
    begun = replace(plain, resume_from=plain.checkpoint(8), steps_done=8)
    sharded = replace(plain, parallel=Parallel(sharded=True), gradient_checkpointing=True)
    return {"sharded": sharded, "plain": plain, "packed": packed, "resumed": begun, "killed": plain, "missing": plain}


@pytest.fixture(scope="module")
def one(jobs: dict[str, TrainJob]) -> dict[str, dict[str, Any]]:
    return {name: alone(jobs[name]) for name in ("plain", "packed")}


@pytest.fixture(scope="module")
def two(jobs: dict[str, TrainJob], one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both ranks were told, by job; None where a rank was killed or not there."""
    return told_by_two(jobs, tmp_path_factory.mktemp("jobs"))


def assert_same_series(found: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    assert_same_figures(found, expected, first)
    assert [step["step"] for step in found["steps"]] == list(range(first + 1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_two_ranks_do_what_one_device_does(one: dict[str, Any], two: dict[str, Any], name: str) -> None:
    for rank in two[name]:
        assert_same_series(rank, one[name])
    assert len({step["tokens"] for step in one[name]["steps"]}) > 10, "steps of equal counts would prove little"


@pytest.mark.slow
def test_evaluation_is_shared_and_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    expected = one["plain"]["evaluations"]
    assert [evaluation["step"] for evaluation in expected] == [10, 20]
    for rank in two["plain"]:
        for found, evaluation in zip(rank["evaluations"], expected, strict=True):
            assert found["tokens"] == evaluation["tokens"]
            assert found["loss"] == pytest.approx(evaluation["loss"], abs=TOLERANCE)


@pytest.mark.slow
def test_a_sharded_base_computes_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    for rank in two["sharded"]:
        assert rank["share"] == 0.5
        assert_same_series(rank, one["plain"])
        losses = [evaluation["loss"] for evaluation in rank["evaluations"]]
        assert losses == pytest.approx([e["loss"] for e in one["plain"]["evaluations"]], abs=TOLERANCE)


@pytest.mark.slow
def test_rank_0_alone_writes(jobs: dict[str, TrainJob], two: dict[str, Any]) -> None:
    folder = jobs["plain"].output_dir.parent
    names = {path.name for path in (folder / "plain-0").iterdir()}
    assert names == {"adapter", "checkpoint-8", "checkpoint-20"}
    assert not (folder / "plain-1").exists()


@pytest.mark.slow
def test_one_goes_on_with_two_and_two_with_one(
    jobs: dict[str, TrainJob], one: dict[str, Any], two: dict[str, Any]
) -> None:
    for rank in two["resumed"]:
        assert_same_series(rank, one["plain"], first=8)
    checkpoint = jobs["plain"].output_dir.parent / "plain-0" / "checkpoint-8"
    folder = jobs["plain"].output_dir.with_name("two-then-one")
    back = replace(jobs["plain"], resume_from=checkpoint, steps_done=8, output_dir=folder)
    assert_same_series(alone(back), one["plain"], first=8)


@pytest.mark.slow
def test_a_killed_rank_is_named_by_the_other(two: dict[str, Any]) -> None:
    left, killed = two["killed"]
    assert killed is None
    (message,) = left["error"]
    assert message.startswith("rank 0: all ranks must answer, got nothing from 1 (")
    assert message.endswith("; see what ended it, and go on with --resume")
    assert [step["step"] for step in left["steps"]] == [1, 2]


@pytest.mark.slow
def test_a_missing_rank_is_named(two: dict[str, Any]) -> None:
    assert two["missing"][0]["error"] == [
        "rank 0: 2 ranks must come within 2 s, got 1 of them and not 1; start these too"
    ]
