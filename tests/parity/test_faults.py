"""Parity must catch them: each fault is planted alone, and the right rung, place and cause are named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.parity import network_faults, result_faults, row_faults, training_faults
from tests.parity.jobs import Recordings
from twintune.backends import missing_packages
from twintune.parity.bundle import TEXTS, Bundle
from twintune.parity.ladder import compare
from twintune.parity.record import Settings, record
from twintune.parity.verdict import Rung

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cuda_alone,
    pytest.mark.skipif(bool(missing_packages("cuda")), reason="faults are planted in the cuda backend"),
]

KIND = "qwen2"  # biases, tied embeddings, grouped heads, three micro-batches a step
FEW_STEPS = 8  # show what the first steps show
ALL_STEPS = 50


class Fault(NamedTuple):
    """What is planted, and what parity says of it."""

    plant: Callable[[pytest.MonkeyPatch], None]
    rung: int
    place: str
    cause: str
    steps: int = FEW_STEPS


FAULTS = {
    "row order": Fault(row_faults.in_rows(row_faults.another_order), 2, "row 2", "another order"),
    "one flipped row byte": Fault(
        row_faults.in_rows(row_faults.one_flipped_byte), 2, "row 4, token 7", "single token id"
    ),
    "label off by one": Fault(row_faults.in_rows(row_faults.label_off_by_one), 2, r"row 0, token \d+", "off by one"),
    "prompt trained": Fault(
        row_faults.in_rows(row_faults.prompt_trained), 2, "row 0, token 0", "the prompt is trained"
    ),
    "eos not trained": Fault(
        row_faults.in_rows(row_faults.eos_not_trained), 2, r"row 0, token \d+", "closing token is trained"
    ),
    "missing qkv bias": Fault(
        network_faults.in_network(network_faults.no_bias), 3, r"layers\.0\.self_attn\.k_proj\.bias", "zeros"
    ),
    "swapped w1 and w3": Fault(
        network_faults.in_network(network_faults.swapped_w1_and_w3), 3, r"layers\.0\.mlp\.gate_proj", "name map swaps"
    ),
    "one weight off by 1e-3": Fault(
        network_faults.in_network(network_faults.one_weight), 3, r"layers\.1\.mlp\.down_proj", "single"
    ),
    "another initial adapter": Fault(network_faults.another_initial_adapter, 4, r"layers\.0\..*lora_A", "drew its own"),
    "swapped A and B": Fault(network_faults.swapped_a_and_b, 4, r"self_attn\.[qo]_proj", "A and B are swapped"),
    "rope theta": Fault(
        network_faults.in_network(network_faults.rope_theta), 5, r"layers\.0, row \d+, token \d+, without", "rope theta"
    ),
    "rope scaling": Fault(
        network_faults.in_network(network_faults.rope_scaling), 5, r"layers\.0, .*without", "rope scaling"
    ),
    "norm epsilon": Fault(
        network_faults.in_network(network_faults.norm_epsilon), 5, r"layers\.0, .*token 0, without", "rms_norm_eps"
    ),
    "un-tied head": Fault(
        network_faults.in_network(network_faults.untied_head), 5, "logits, .*without", "tied on one side"
    ),
    "pad hidden mid-text": Fault(
        network_faults.in_network(network_faults.hidden_token), 5, r"layers\.0, .*without", "pad id in the middle"
    ),
    "lora scaling 1": Fault(
        network_faults.in_adapter(network_faults.scaling_of_one), 5, r"layers\.0, .*with adapter", "lora_alpha / r"
    ),
    "labels shifted in the loss": Fault(
        training_faults.in_loss_rows(training_faults.shifted_once_more), 6, r"row \d+", "off by one"
    ),
    "dropout of torch": Fault(network_faults.dropout_of_torch, 6, r"row \d+", "dropout is on .* or drawn in another"),
    "mean of micro-batch means": Fault(
        training_faults.weighted_means(training_faults.mean_of_micro_batches), 7, "lora", "micro-batches"
    ),
    "mean of rank means": Fault(
        training_faults.weighted_means(training_faults.mean_of_ranks), 7, "lora", "micro-batches"
    ),
    "warm-up rounding": Fault(training_faults.warmup_rounded_down, 8, "step 2", "rounded otherwise"),
    "no bias correction": Fault(
        training_faults.optimizer(training_faults.no_bias_correction), 8, "lora_B", "bias correction"
    ),
    "no weight decay": Fault(training_faults.optimizer(training_faults.no_weight_decay), 8, "lora_A", "weight decay"),
    "another beta2": Fault(training_faults.optimizer(training_faults.another_beta2), 8, "lora_B", "other betas"),
    "clip by value": Fault(training_faults.clipped_by_value, 8, "lora_B", "clipped in another way"),
    "moments forgotten": Fault(training_faults.optimizer(training_faults.moments_forgotten), 9, r"step \d+", "moment"),
    "adapter saved in half": Fault(result_faults.adapter_saved_in_half, 10, "lora", "weights", ALL_STEPS),
    "top-p edge": Fault(
        result_faults.top_p_drops_the_token_that_crosses, 11, r"prompt of row \d+", "crosses p", ALL_STEPS
    ),
    "attended padding": Fault(
        result_faults.attended_padding, 11, r"prompt of row \d+, new token \d+", "padding of a batch", ALL_STEPS
    ),
    "merged with scaling 1": Fault(result_faults.merged_with_scaling_one, 12, "cuda", "scaling", ALL_STEPS),
}


@pytest.fixture
def healthy(recordings: Recordings) -> Bundle:
    """The other backend's bundle where it is installed, else this one's own."""
    if missing_packages("ascend"):
        return recordings.bundle(KIND, "cuda")
    return recordings.pair(KIND)[1]


def first_difference(
    healthy: Bundle,
    recordings: Recordings,
    plant: Callable[[pytest.MonkeyPatch], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> Rung | None:
    recipe = recordings.recipe(KIND, "cuda")
    with monkeypatch.context() as patch:
        patch.setattr("twintune.run_curve.draw_run", lambda *_: None)  # a third of a short run, and no rung
        plant(patch)
        faulty = record(recipe, folder, Settings(steps=steps))
    return compare(healthy, faulty).first_difference


def check(rung: Rung | None, number: int, place: str, cause: str) -> None:
    assert rung is not None, "parity did not notice"
    print(rung.number, rung.place, "|", rung.cause)
    assert rung.number == number, (rung.place, rung.cause)
    assert re.search(place, rung.place), rung.place
    assert re.search(cause, rung.cause), rung.cause


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(
    recordings: Recordings, healthy: Bundle, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    rung = first_difference(healthy, recordings, fault.plant, tmp_path / "faulty", monkeypatch, fault.steps)
    check(rung, fault.rung, fault.place, fault.cause)


def test_another_system_prompt(
    recordings: Recordings, healthy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = row_faults.another_system_prompt(recordings.recipe(KIND, "cuda"))
    rung = first_difference(healthy, recordings, plant, tmp_path / "faulty", monkeypatch, FEW_STEPS)
    check(rung, 2, r"row 0, token \d+", "system prompt")
    assert rung is not None
    assert any("<- differs" in line for line in rung.details), rung.details


def test_another_eos_token(
    recordings: Recordings, healthy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = healthy.json(TEXTS)["texts"][0]["greedy"][2]
    rung = first_difference(
        healthy, recordings, result_faults.another_eos(token), tmp_path / "faulty", monkeypatch, ALL_STEPS
    )
    check(rung, 11, r"new token [0-2]", "stop at other tokens")


def test_a_healthy_run_of_fewer_steps_differs_in_its_adapter_alone(
    recordings: Recordings, healthy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faults above are found for what they are: without one, the same short run passes all rungs before 10."""
    rung = first_difference(healthy, recordings, lambda patch: None, tmp_path / "short", monkeypatch, FEW_STEPS)
    check(rung, 10, "all steps", "trained 50 and 8 steps")
