import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs import make_job
from twintune.backends import missing_packages
from twintune.backends.job import Parallel, Rank, TrainJob
from twintune.errors import UserError

if missing_packages("ascend") or missing_packages("cuda"):
    pytest.skip("checks MindFormers' configuration of a model that torch makes", allow_module_level=True)

from mindformers.modules.transformer import TransformerOpParallelConfig

from twintune.backends.ascend import AscendBackend
from twintune.backends.ascend.parallel import require_whole_models


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """Two devices' rows in each of 4 micro-batches."""
    job = make_job(tmp_path_factory.mktemp("parallel"), accumulation=4)
    return replace(job, rank=Rank(0, 8, 0), parallel=Parallel(model_parallel=2, pipeline_stage=2))


def config_of(job: TrainJob) -> dict[str, Any]:
    """The only configuration of the plan."""
    (text,) = AscendBackend().plan(job).values()
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def test_pipeline_and_model_parallel_are_mindformers_own_keys(job: TrainJob) -> None:
    config = config_of(job)
    checked = TransformerOpParallelConfig(**config["parallel_config"])
    assert (checked.data_parallel, checked.model_parallel, checked.pipeline_stage) == (2, 2, 2)
    assert checked.micro_batch_num == 4
    assert (config["use_parallel"], config["parallel"]["parallel_mode"]) == (True, 1)
    assert config["runner_wrapper"]["type"] == "MFPipelineWithLossScaleCell"
    assert config["runner_wrapper"]["calculate_per_token_loss"] is True
    assert config["runner_config"]["batch_size"] * 2 * 4 == job.order[0].size
    assert config["train_dataset"]["batch_size"] == config["model"]["model_config"]["batch_size"] == 1


def test_model_parallel_alone_accumulates(job: TrainJob) -> None:
    config = config_of(replace(job, rank=Rank(0, 4, 0), parallel=Parallel(model_parallel=2)))
    assert config["parallel_config"] == {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 1}
    assert config["runner_wrapper"]["type"] == "MFTrainOneStepCell"
    assert config["runner_config"]["gradient_accumulation_steps"] == 4


def test_data_parallel_keeps_the_step_cell_and_deals_rows(job: TrainJob) -> None:
    texts = AscendBackend().plan(replace(job, rank=Rank(1, 2, 1), parallel=Parallel()))
    assert set(texts) == {"mindformers_npu.yaml", "mindformers_cpu.yaml"}
    for text in texts.values():
        config = yaml.safe_load(text)
        assert config["runner_wrapper"]["world_size"] == 2
        assert config["runner_config"]["batch_size"] == 4
        assert config["use_parallel"] is False


def test_devices_that_share_a_model_do_not_train_here(job: TrainJob) -> None:
    with pytest.raises(UserError, match="model_parallel and pipeline_stage must be 1 to train, got 2 and 2"):
        require_whole_models(job)
    require_whole_models(replace(job, parallel=Parallel()))


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (Parallel(model_parallel=4), "model_parallel must divide num_key_value_heads 2, got 4"),
        (Parallel(pipeline_stage=4), "pipeline_stage must be at most 2 layers, got 4"),
        (Parallel(pipeline_stage=8), "gradient_accumulation_steps must be at least backend.ascend.pipeline_stage 8"),
    ],
)
def test_what_devices_cannot_share_is_refused(job: TrainJob, parallel: Parallel, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AscendBackend().plan(replace(job, parallel=parallel))


def test_overrides_of_the_recipes_keys_are_refused(job: TrainJob) -> None:
    laid_over = replace(job, overrides={"parallel_config": {"model_parallel": 4}})
    with pytest.raises(UserError, match=r"parallel_config.model_parallel must be left to the recipe"):
        AscendBackend().plan(laid_over)


def test_the_model_of_these_tests_has_two_layers_and_two_heads_to_share(job: TrainJob) -> None:
    config = json.loads((Path(job.model) / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (2, 2)
