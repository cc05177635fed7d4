"""Guards against what MindFormers does in silence: each of these tests fails without its guard."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mindspore = pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import Recorder, make_job
from tests.tiny_models import save_tiny_model
from twintune.backends import load_backend
from twintune.backends.ascend import runtime
from twintune.backends.ascend.data import ordered_dataset
from twintune.backends.job import Lora, TrainJob
from twintune.converters import mindrecord
from twintune.converters.adapter import WEIGHTS, read_adapter, write_adapter
from twintune.converters.base_checkpoint import network_tensors
from twintune.converters.names import adapter_names
from twintune.errors import UserError
from twintune.models import read_model_config

runtime.import_quietly()

LORA = Lora(4, 8, 0.0, ("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, Recorder]:
    """A finished run of four steps."""
    job = make_job(tmp_path_factory.mktemp("done"), steps=4, lora=LORA)
    job.output_dir.mkdir()
    recorder = Recorder()
    load_backend("ascend").train(job, recorder)
    return job, recorder


def test_steps_are_reported(done: tuple[TrainJob, Recorder]) -> None:
    job, recorder = done
    assert [step.step for step in recorder.steps] == [1, 2, 3, 4]
    rows = list(mindrecord.read_rows(job.rows / "rows.mindrecord"))
    tokens = [sum(rows[number].trained_tokens for number in batch.ravel()) for batch in job.order]
    assert [step.tokens for step in recorder.steps] == tokens
    assert any("the graph" in text for text in recorder.texts)


def test_the_graph_was_compiled(done: tuple[TrainJob, Recorder]) -> None:
    """Without build_context MindFormers falls back to PyNative mode, 40 times as slow."""
    assert mindspore.get_context("mode") == mindspore.GRAPH_MODE


def test_mindformers_checkpoints_hold_the_adapter(done: tuple[TrainJob, Recorder]) -> None:
    job, _ = done
    (trainable,) = (job.output_dir / "mindformers" / "checkpoint_trainable").rglob("*.ckpt")
    theirs = mindspore.load_checkpoint(str(trainable))
    _, ours = read_adapter(job.output_dir / "adapter")
    names = adapter_names(read_model_config(job.model), LORA.target_modules)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(theirs[names[name]].asnumpy(), tensor)
    assert list((job.output_dir / "mindformers" / "checkpoint").rglob("*.ckpt"))


def test_only_one_adapter_config_is_left(done: tuple[TrainJob, Recorder]) -> None:
    """MindFormers writes one that looks like PEFT's and is not: regex targets and no base."""
    job, _ = done
    places = {path.parent.name for path in job.output_dir.rglob("adapter_config.json")}
    assert places == {"adapter"}
    config = json.loads((job.output_dir / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "down_proj"]


def test_nothing_is_written_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[TrainJob, Recorder]
) -> None:
    monkeypatch.chdir(tmp_path)
    job, _ = done
    model = load_backend("ascend").load_model(job.model, None, pad_token_id=0, device="cpu", dtype="float32")
    model.logits([[3, 4, 5]])
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without finetune_checkpoint MindFormers trains random weights and nothing complains."""
    from mindformers import Trainer

    from twintune.backends.ascend import train

    class Forgetful(Trainer):  # type: ignore[misc]
        def finetune(self, finetune_checkpoint: str) -> None:
            super().finetune()

    monkeypatch.setattr(train, "Trainer", Forgetful)
    job = make_job(tmp_path, steps=2, layers=1, lora=LORA)
    job.output_dir.mkdir()
    with pytest.raises(UserError, match="must equal that of"):
        train.train(job, Recorder())
    assert not (job.output_dir / "adapter").exists()


def test_weights_of_another_model_are_noticed(tmp_path: Path) -> None:
    from twintune.backends.ascend.parameters import check_base

    config = read_model_config(save_tiny_model(tmp_path / "model", "llama"))
    wanted = network_tensors(tmp_path / "model", config, "float32")
    with pytest.raises(UserError) as caught:
        check_base(tmp_path / "model", {"stranger.weight": None}, wanted, trained=set())
    assert any("stranger.weight must come from the base weights" in text for text in caught.value.messages)
    assert any("layers.0.attention.wq.weight must be there" in text for text in caught.value.messages)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, steps=2, layers=1, lora=LORA)
    _, tensors = read_adapter(job.initial_adapter)
    (job.initial_adapter / WEIGHTS).unlink()
    (job.initial_adapter / "adapter_config.json").unlink()
    swapped = {name: np.ascontiguousarray(tensor.T) for name, tensor in tensors.items()}
    write_adapter(job.initial_adapter, swapped, LORA, "model")
    job.output_dir.mkdir()
    with pytest.raises(UserError, match=r"lora_A.weight must be \[4, 64\], got \[64, 4\]; A and B are swapped"):
        load_backend("ascend").train(job, Recorder())


def test_rows_come_in_dealt_order_one_longer_than_the_graph(tmp_path: Path) -> None:
    """MindFormers' net drops the last input and the first label, so rows are one longer."""
    job = make_job(tmp_path, accumulation=3)
    path = job.rows / "rows.mindrecord"
    rows = list(mindrecord.read_rows(path))
    batches = ordered_dataset(path, job.order, 32, pad_token_id=0).create_dict_iterator(1, output_numpy=True)
    steps = list(batches)
    assert len(steps) == len(job.order)
    for batch, numbers in zip(steps, job.order, strict=True):
        assert batch["input_ids"].shape == batch["labels"].shape == (6, 33)
        for ids, labels, number in zip(batch["input_ids"], batch["labels"], numbers.ravel(), strict=True):
            length = len(rows[number].input_ids)
            np.testing.assert_array_equal(ids[:length], rows[number].input_ids)
            np.testing.assert_array_equal(labels[:length], rows[number].labels)
            assert set(ids[length:]) <= {0}
            assert set(labels[length:]) <= {-100}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    job = make_job(tmp_path, steps=3, layers=1, lora=LORA)
    _, tensors = read_adapter(job.initial_adapter)
    huge: dict[str, Any] = {name: np.full_like(tensor, 1e30) for name, tensor in tensors.items()}
    for file in job.initial_adapter.iterdir():
        file.unlink()
    write_adapter(job.initial_adapter, huge, LORA, "model")
    job.output_dir.mkdir()
    with pytest.raises(UserError, match="step 1: loss and gradient norm must be finite"):
        load_backend("ascend").train(job, Recorder())
