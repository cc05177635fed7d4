"""Packed rows on MindFormers: borders in the data pipeline, in the configuration and in the network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

mindspore = pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import Recorder, make_job, make_packed_job, packed_rows
from tests.tiny_models import save_tiny_model
from twintune.backends import load_backend
from twintune.backends.ascend import runtime
from twintune.backends.ascend.data import conversation_ends, conversation_numbers, ordered_dataset
from twintune.backends.ascend.profile import CONVERSATION_ENDS, CONVERSATION_NUMBERS, packed_borders, training_config
from twintune.backends.job import Lora, TrainJob
from twintune.converters import mindrecord
from twintune.errors import UserError

runtime.import_quietly()

LOSS = 1e-5  # of a token, float32
LENGTHS = np.array([3, 1, 2], np.int32)


def packed(folder: Path, **changes: Any) -> TrainJob:
    return make_packed_job(folder, lora=Lora(4, 8, 0.0, ("q_proj", "down_proj")), **changes)


def token_losses(logits: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log p of every token but the first, from the logits before it."""
    scores = logits[:-1].astype(np.float64)
    likelihood = scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
    likelihood -= scores.max(-1, keepdims=True)
    return -np.take_along_axis(likelihood, ids[1:, None].astype(np.int64), -1)[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_losses_of_tokens_equal_those_of_the_conversations_alone(tmp_path: Path, family: str) -> None:
    from mindformers.wrapper.wrapper import DataOrderWrapperCell

    from twintune.backends.ascend.decode import MindFormersModel
    from twintune.backends.ascend.packed import PackedNetwork

    saved = save_tiny_model(tmp_path, family, num_hidden_layers=1)
    model = MindFormersModel(saved, None, pad_token_id=0, device="cpu", dtype="float32")
    rows = packed_rows()[:3]
    length = 64
    model.logits([[3] * length])  # builds it for this length
    alone = [
        token_losses(model.logits([ids.tolist()])[0], ids)
        for row in rows
        for ids in np.split(row.input_ids, np.cumsum(row.lengths)[:-1])
    ]
    named = DataOrderWrapperCell(["input_ids", "labels", "attention_mask"], model.network)
    network = PackedNetwork(named, CONVERSATION_NUMBERS).set_train(False)
    ids = np.array([np.pad(row.input_ids, (0, length - len(row.input_ids))) for row in rows])
    numbers = np.array([conversation_numbers(np.array(row.lengths), length) for row in rows])
    logits = network(*(mindspore.Tensor(array) for array in (ids, ids, numbers)))[0].asnumpy()
    ours = [
        token_losses(part, one)
        for row, scores in zip(rows, logits, strict=True)
        for part, one in zip(
            np.split(scores, np.cumsum(row.lengths))[:-1],
            np.split(row.input_ids, np.cumsum(row.lengths)[:-1]),
            strict=True,
        )
    ]
    difference = float(np.abs(np.concatenate(ours) - np.concatenate(alone)).max())
    assert len(ours) > 9
    assert difference <= LOSS, f"largest difference {difference:.2e}"


def test_the_mask_hides_other_conversations_and_the_future() -> None:
    from twintune.backends.ascend.packed import hidden

    numbers = np.array([[0, 0, 0, 1, 2, 2, 3, 3], [0, 0, 1, 1, 1, 1, 1, 1]], np.int32)
    mask = hidden(mindspore.Tensor(numbers)).asnumpy()
    assert mask.shape == (2, 1, 8, 8)
    assert mask.dtype == np.uint8
    for row, places in zip(mask[:, 0], numbers, strict=True):
        seen = [[places[query] == places[key] and key <= query for key in range(8)] for query in range(8)]
        np.testing.assert_array_equal(row == 0, seen)
    assert (mask == 0).any(axis=-1).all(), "a query that sees nothing has a softmax of NaN"


def test_padding_is_a_conversation_of_its_own() -> None:
    assert conversation_numbers(LENGTHS, 9).tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3]
    assert conversation_numbers(LENGTHS, 6).tolist() == [0, 0, 0, 1, 2, 2]
    assert conversation_ends(LENGTHS, 9, width=5).tolist() == [3, 4, 6, 9, 9]
    assert conversation_ends(LENGTHS, 6, width=4).tolist() == [3, 4, 6, 6]


def test_the_compressed_mask_counts_on_from_row_to_row() -> None:
    """The kernel sees the rows of a micro-batch as one line, as MindFormers' asl_batch_wrapper prepares it."""
    from twintune.backends.ascend.packed import PackedNetwork

    class Echo(mindspore.nn.Cell):  # type: ignore[misc, name-defined]
        def construct(self, input_ids: Any, labels: Any, ends: Any) -> Any:
            return ends

    ids = mindspore.Tensor(np.zeros((2, 10), np.int32))  # one longer than the network sees
    ends = np.stack([conversation_ends(LENGTHS, 9, 5), conversation_ends(LENGTHS[:1], 9, 5)])
    line = PackedNetwork(Echo(), CONVERSATION_ENDS)(ids, ids, mindspore.Tensor(ends))
    assert line.asnumpy().ravel().tolist() == [3, 4, 6, 9, 9, 12, 18, 18, 18, 18]
    assert line.dtype == mindspore.int32


@pytest.mark.parametrize("borders", [CONVERSATION_NUMBERS, CONVERSATION_ENDS])
@pytest.mark.parametrize("rows_a_shard", [50_000, 7])
def test_borders_come_with_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, borders: str, rows_a_shard: int
) -> None:
    monkeypatch.setattr(mindrecord, "ROWS_A_SHARD", rows_a_shard)
    job = packed(tmp_path, accumulation=3, steps=7)
    rows = packed_rows()
    width = max(len(row.lengths) for row in rows) + 1
    dataset = ordered_dataset(job.rows / "rows.mindrecord", job.order, 64, 0, borders)
    batches = list(dataset.create_dict_iterator(1, output_numpy=True))
    assert dataset.get_col_names() == ["input_ids", "labels", borders]
    for batch, numbers in zip(batches, job.order, strict=True):
        for place, number in enumerate(numbers.ravel()):
            length = len(rows[number].input_ids)
            np.testing.assert_array_equal(batch["input_ids"][place, :length], rows[number].input_ids)
            lengths = np.array(rows[number].lengths, np.int32)
            expected = (
                conversation_numbers(lengths, 64)
                if borders == CONVERSATION_NUMBERS
                else conversation_ends(lengths, 64, width)
            )
            np.testing.assert_array_equal(batch[borders][place], expected)


@pytest.mark.parametrize(
    ("device", "row_length", "borders", "argument"),
    [
        ("cpu", 2048, CONVERSATION_NUMBERS, "attention_mask"),
        ("npu", 2047, CONVERSATION_ENDS, "actual_seq_len"),  # compiled for 2,048
        ("npu", 1024, CONVERSATION_NUMBERS, "attention_mask"),
    ],
)
def test_both_profiles_name_an_input_of_the_network(
    tmp_path: Path, device: str, row_length: int, borders: str, argument: str
) -> None:
    import inspect

    from mindformers.models.llama import LlamaForCausalLM

    from twintune.backends.ascend.keys import check_keys

    job = packed(tmp_path, row_length=row_length)
    config = training_config(job, device)
    check_keys(config)
    assert packed_borders(job, device).value == config["runner_wrapper"]["borders"] == borders
    assert config["train_dataset"]["input_columns"] == ["input_ids", "labels", argument]
    assert argument in inspect.signature(LlamaForCausalLM.construct).parameters
    settings = config["model"]["model_config"]
    assert settings.get("use_eod_attn_mask_compression", False) == (borders == CONVERSATION_ENDS)
    assert settings["use_flash_attention"] == (device == "npu")


def test_the_npu_network_is_built_for_lines_of_conversations(tmp_path: Path) -> None:
    """It cannot be run without an NPU; its constructor refuses what does not go together."""
    from mindformers import build_context
    from mindformers.models.build_model import build_network
    from mindformers.tools.register import MindFormerConfig

    from twintune.backends.ascend.profile import context

    config = training_config(packed(tmp_path, row_length=2048), "npu")
    build_context({"context": context("cpu"), "parallel": {}, "use_parallel": False})
    network = build_network(MindFormerConfig(**config["model"]))
    (attention,) = (cell for name, cell in network.cells_and_names() if name.endswith("layers.0.attention"))
    assert attention.use_eod_attn_mask_compression
    assert (attention.input_layout, attention.sparse_mode) == ("TND", 8)


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_a_plain_job_knows_nothing_of_packing(tmp_path: Path, device: str) -> None:
    config = training_config(make_job(tmp_path), device)
    assert config["train_dataset"]["input_columns"] == ["input_ids", "labels"]
    assert "borders" not in config["runner_wrapper"]
    assert "use_eod_attn_mask_compression" not in config["model"]["model_config"]


def test_packing_is_decided_by_the_recipe(tmp_path: Path) -> None:
    job = make_job(tmp_path, overrides={"model": {"model_config": {"use_eod_attn_mask_compression": True}}})
    with pytest.raises(UserError, match=r"must be left to the recipe, got True; its key: data\.packing"):
        load_backend("ascend").plan(job)


@pytest.mark.slow
def test_a_packed_run_reads_shards_and_says_how_it_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindrecord, "ROWS_A_SHARD", 7)
    job = packed(tmp_path, layers=1, steps=3)
    job.output_dir.mkdir()
    recorder = Recorder()
    load_backend("ascend").train(job, recorder)
    assert (job.rows / "rows.mindrecord0").exists()
    other, folder = Recorder(), job.output_dir.with_name("cuda")
    folder.mkdir()
    load_backend("cuda").train(replace(job, output_dir=folder), other)  # reads one file
    expected = [step.loss for step in other.steps]
    assert [step.loss for step in recorder.steps] == pytest.approx(expected, abs=LOSS)
    assert any(text.startswith("attention of packed rows: conversation_numbers") for text in recorder.texts)
    assert [step.tokens for step in recorder.steps] == [
        sum(packed_rows()[number].trained_tokens for number in step.ravel()) for step in job.order
    ]
