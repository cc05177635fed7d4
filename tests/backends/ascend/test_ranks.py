import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import Recorder, make_job, random_rows, write_rows
from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.backends.job import Lora, TrainJob

if missing_packages("ascend") or missing_packages("cuda"):
    pytest.skip("trains with mindformers a model that torch makes", allow_module_level=True)

from twintune.backends.ascend import AscendBackend
from twintune.launch import choose_machines

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5  # float32: sums in another order


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    folder = tmp_path_factory.mktemp("msrun")
    lora = Lora(4, 8, 0.1, ("q_proj", "v_proj", "up_proj"))
    model = save_tiny_model(folder / "model", "llama", num_hidden_layers=1)
    job = make_job(folder, model=model, lora=lora, evaluation_steps=(20,), checkpoint_steps=(20,))
    write_rows(job.rows, random_rows(3), "validation")
    return job


@pytest.fixture(scope="module")
def two(job: TrainJob) -> list[dict[str, Any]]:
    """What each of msrun's two workers was told."""
    file = job.output_dir.with_name("job.pickle")
    file.write_bytes(pickle.dumps(job))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        command = ["-m", "tests.backends.ascend.two_ranks", str(file)]
        AscendBackend().launch(command, choose_machines(2, 1, 0, None))
    return [json.loads(job.output_dir.with_name(f"rank-{number}.json").read_text()) for number in range(2)]


@pytest.mark.slow
def test_two_workers_do_what_one_does(job: TrainJob, two: list[dict[str, Any]]) -> None:
    alone = Recorder()
    AscendBackend().train(job, alone)
    for rank in two:
        assert [step["step"] for step in rank["steps"]] == list(range(1, 21))
        for figure in ("loss", "grad_norm", "learning_rate", "tokens"):
            expected = [getattr(step, figure) for step in alone.steps]
            assert [step[figure] for step in rank["steps"]] == pytest.approx(expected, abs=TOLERANCE), figure
        (found,), (expected_one,) = rank["evaluations"], alone.evaluations
        assert found["tokens"] == expected_one.tokens
        assert found["loss"] == pytest.approx(expected_one.loss, abs=TOLERANCE)


@pytest.mark.slow
def test_rank_0_alone_writes_what_is_kept(job: TrainJob, two: list[dict[str, Any]]) -> None:
    kept = [
        {name for name in ("adapter", "checkpoint-20") if (job.output_dir.with_name(f"rank-{number}") / name).is_dir()}
        for number in range(2)
    ]
    assert kept == [{"adapter", "checkpoint-20"}, set()]
