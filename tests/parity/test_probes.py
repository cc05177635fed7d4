"""The probes of both backends see the same network: weights, stages, logits, losses and gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.jobs import make_job, make_packed_job
from tests.tiny_models import save_tiny_model
from twintune.backends import Forward, Probe, StepGradients, load_backend, missing_packages
from twintune.backends.job import TrainJob

MISSING = [*missing_packages("ascend"), *missing_packages("cuda")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs both backends, without {', '.join(MISSING)}"),
    # peft 0.21 asks transformers 5 for gradient checkpointing by its old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

UNTIED = {"tie_word_embeddings": False, "num_key_value_heads": 4, "num_hidden_layers": 1}
ROWS = [list(range(3, 3 + length)) for length in (5, 16, 11)]
# Largest difference over largest value, float32 on both sides.
STAGE = 1e-5
ROW_LOSS = 1e-5
GRADIENT = 1e-4  # norm of the difference over the norm
RESPONSE = 1e-4  # of the logits to a changed weight

Weights = Mapping[str, NDArray[np.float32]]


@dataclass
class Sides:
    """A job's network opened in both backends, with the same adapter on it, whose B is not zero."""

    job: TrainJob
    cuda: Probe
    ascend: Probe

    @property
    def probes(self) -> tuple[Probe, Probe]:
        return self.cuda, self.ascend

    @cached_property
    def forwards(self) -> tuple[list[Forward], list[Forward]]:
        return self.cuda.forward(ROWS), self.ascend.forward(ROWS)

    @cached_property
    def gradients(self) -> tuple[StepGradients, StepGradients]:
        return self.cuda.gradients(self.job.order[0]), self.ascend.gradients(self.job.order[0])


@pytest.fixture(scope="module", params=["llama", "qwen2-untied-ungrouped-packed"])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """Three micro-batches a step; qwen2 has biases on q, k, v."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        job = make_job(folder, accumulation=3)
    else:
        model = save_tiny_model(folder / "model", "qwen2", **UNTIED)
        job = make_packed_job(folder, accumulation=3, model=model)
    sides = Sides(job, *(load_backend(name).open_probe(job) for name in ("cuda", "ascend")))
    draw = np.random.default_rng(5)
    adapter = sides.cuda.adapter()
    for name in sorted(adapter):
        if "lora_B" in name:
            adapter[name] = draw.normal(0, 0.05, adapter[name].shape).astype(np.float32)
    for probe in sides.probes:
        probe.put_adapter(adapter)
    return sides


def relative(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / np.abs(one).max())


def same_weights(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype == np.float32
        np.testing.assert_array_equal(tensor, other[name], err_msg=name)


def test_weights_are_bit_for_bit_the_same(sides: Sides) -> None:
    same_weights(*(dict(probe.base()) for probe in sides.probes))
    same_weights(*(probe.adapter() for probe in sides.probes))
    names = [[name for name, _ in probe.base()] for probe in sides.probes]
    assert names[0] == names[1]


def test_every_stage_and_the_logits(sides: Sides) -> None:
    largest: dict[str, float] = {}
    for one, other in zip(*sides.forwards, strict=True):
        assert list(one.hidden) == list(other.hidden)
        stages = {stage: relative(states, other.hidden[stage]) for stage, states in one.hidden.items()}
        stages["logits"] = relative(one.logits, other.logits)
        largest = {stage: max(error, largest.get(stage, 0.0)) for stage, error in stages.items()}
    print("stages:", {stage: f"{error:.1e}" for stage, error in largest.items()})
    assert largest["embed_tokens"] == 0
    assert max(largest.values()) <= STAGE, largest


def test_losses_of_rows(sides: Sides) -> None:
    one, other = sides.gradients
    assert one.tokens == other.tokens == one.row_tokens.sum()
    np.testing.assert_array_equal(one.row_tokens, other.row_tokens)
    assert one.row_losses.dtype == other.row_losses.dtype == np.float64
    means = [side.row_losses / side.row_tokens for side in sides.gradients]
    print("row losses:", f"{np.abs(means[0] - means[1]).max():.1e}")
    np.testing.assert_allclose(means[1], means[0], rtol=0, atol=ROW_LOSS)
    assert other.loss == pytest.approx(one.loss, abs=ROW_LOSS)


def test_gradients(sides: Sides) -> None:
    one, other = (side.gradients for side in sides.gradients)
    assert one.keys() == other.keys() == sides.cuda.adapter().keys()
    errors = {name: float(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(one[name])) for name in one}
    worst = max(errors, key=errors.__getitem__)
    print("gradients:", f"{errors[worst]:.1e} at {worst}")
    assert errors[worst] <= GRADIENT, f"{errors[worst]:.1e} at {worst}"


def test_a_changed_weight_changes_both_alike_and_back(sides: Sides) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    changes = []
    for probe, before in zip(sides.probes, sides.forwards, strict=True):
        own = dict(probe.base())[name]
        probe.put_base([(name, own * np.float32(1.1))])
        changes.append(probe.forward(ROWS)[0].logits - before[0].logits)
        probe.put_base([(name, own)])
        np.testing.assert_array_equal(probe.forward(ROWS)[0].logits, before[0].logits)
    assert np.abs(changes[0]).max() > 0.01
    assert relative(*changes) <= RESPONSE, relative(*changes)
