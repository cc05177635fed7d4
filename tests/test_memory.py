"""Parts of the memory model by formula; tests/scripts/test_measure_memory.py holds the whole against PyTorch."""

from dataclasses import replace
from typing import Any

import pytest

from twintune.backends.job import Lora, Optimizer, Quantization
from twintune.memory import (
    LOSS_CHUNK,
    MicroBatch,
    Training,
    estimate_memory,
    largest_micro_batch,
    moment_bytes,
    weight_bytes,
)

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LINEAR = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
OUTSIDE = 2 * 1000 * 64 + 9 * 64  # embedding, head and norms
LORA = Lora(4, 8, 0.0, ("q_proj", "v_proj"))
TRAINED = 4 * 4 * ((64 + 64) + (64 + 32))
ADAMW = Optimizer(1e-3, 0.0, 0.9, 0.999, 1e-8, 1.0)
FLOAT32 = Training(CONFIG, LORA, ADAMW, "float32")
BATCH = MicroBatch(2, 100, 120)


def test_weights_are_in_their_dtype_or_nf4() -> None:
    assert weight_bytes(FLOAT32) == 4 * (LINEAR + OUTSIDE)
    assert weight_bytes(replace(FLOAT32, dtype="bfloat16")) == 2 * (LINEAR + OUTSIDE)
    codes = replace(FLOAT32, dtype="bfloat16", quantization=Quantization(double_quant=False))
    assert weight_bytes(codes) == 2 * OUTSIDE + LINEAR * (0.5 + 4 / 64)
    twice = replace(codes, quantization=Quantization(double_quant=True))
    assert weight_bytes(twice) == pytest.approx(2 * OUTSIDE + LINEAR * (0.5 + 1 / 64 + 4 / 64 / 256), rel=1e-12)


@pytest.mark.parametrize(
    ("optim", "size"),
    [("adamw_torch", 8), ("sgd", 0), ("lion_32bit", 4), ("adamw_8bit", 2 + 8 / 256), ("paged_adamw_32bit", 8)],
)
def test_moments_are_those_of_the_optimizer(optim: Any, size: float) -> None:
    assert moment_bytes(replace(ADAMW, optim=optim)) == size


def test_what_is_trained_is_float32_with_a_gradient() -> None:
    memory = estimate_memory(FLOAT32, BATCH)
    assert (memory.adapter, memory.gradients, memory.moments) == (4 * TRAINED, 4 * TRAINED, 8 * TRAINED)


def test_ddp_has_all_on_each_device_and_buckets_besides() -> None:
    one, eight = estimate_memory(FLOAT32, BATCH), estimate_memory(replace(FLOAT32, devices=8), BATCH)
    assert eight.total - one.total == 4 * TRAINED


def test_sharding_divides_all_but_activations_and_gathers_layers() -> None:
    one = estimate_memory(FLOAT32, BATCH)
    eight = estimate_memory(replace(FLOAT32, devices=8, sharded=True), BATCH)
    assert eight.weights == one.weights / 8 + 4 * (OUTSIDE + 2 * LINEAR / 4)
    assert eight.moments == one.moments / 8
    assert (eight.activations, eight.workspace) == (one.activations, one.workspace)


def test_recomputed_layers_keep_their_input_alone() -> None:
    batch = MicroBatch(2, 100, 1)  # with a loss that takes nothing
    again = estimate_memory(replace(FLOAT32, gradient_checkpointing=True), batch)
    assert again.activations == 4 * 200 * 64 * (4 + 1)
    kept = estimate_memory(FLOAT32, batch)
    assert again.workspace == kept.workspace + kept.activations / 4, "one layer at a time has all"


def test_the_loss_of_chunks_does_not_grow_with_their_number() -> None:
    large = replace(FLOAT32, config=CONFIG | {"vocab_size": 100_000})
    one, two = (estimate_memory(large, MicroBatch(4, 1024, count * LOSS_CHUNK)).workspace for count in (1, 2))
    assert two - one == 4 * 64 * LOSS_CHUNK, "the gradient of the hidden states alone"
    whole = [estimate_memory(replace(large, loss_chunk=None), MicroBatch(4, 1024, logits)) for logits in (512, 1024)]
    assert whole[1].workspace - whole[0].workspace == 12 * 512 * 100_000


@pytest.mark.parametrize("again", [False, True])
def test_the_largest_micro_batch_fits_and_one_row_more_does_not(again: bool) -> None:
    training = replace(FLOAT32, gradient_checkpointing=again)

    def needed(rows: int) -> float:
        return estimate_memory(training, MicroBatch(rows, 100, rows * 60)).total

    for rows in (1, 7, 30):
        assert largest_micro_batch(training, 100, 60, needed(rows)) == rows
        assert largest_micro_batch(training, 100, 60, needed(rows) - 1) == rows - 1
