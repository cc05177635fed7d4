"""The two backends do the same job: the bar of the project, on tiny random models in float32."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.parity.conftest import PACKED, PLAIN, STEPS, Twins
from twintune.backends import load_backend
from twintune.converters.adapter import read_adapter
from twintune.generation import Sampling, TextGenerator

pytestmark = pytest.mark.slow

LOSS = 1e-5
GRAD_NORM = 1e-5
ADAPTER = 1e-4
LOGITS = 1e-5


def largest(values: list[float]) -> str:
    return f"largest {max(map(abs, values)):.2e}, mean {np.mean(np.abs(values)):.2e}"


every_job = pytest.mark.parametrize("twins", PLAIN + PACKED, indirect=True)


@every_job
def test_losses_and_gradient_norms(twins: Twins) -> None:
    pairs = list(zip(twins.steps["cuda"], twins.steps["ascend"], strict=True))
    losses = [one.loss - other.loss for one, other in pairs]
    norms = [one.grad_norm - other.grad_norm for one, other in pairs]
    print("loss:", largest(losses), "gradient norm:", largest(norms))
    assert len(pairs) == STEPS
    assert max(map(abs, losses)) <= LOSS, largest(losses)
    assert max(map(abs, norms)) <= GRAD_NORM, largest(norms)


@every_job
def test_tokens_and_learning_rates(twins: Twins) -> None:
    for one, other in zip(twins.steps["cuda"], twins.steps["ascend"], strict=True):
        assert one.step == other.step
        assert one.tokens == other.tokens
        assert other.learning_rate == pytest.approx(one.learning_rate, rel=1e-6, abs=1e-9)


@every_job
def test_adapter_weights(twins: Twins) -> None:
    one_lora, one = read_adapter(twins.adapters["cuda"])
    other_lora, other = read_adapter(twins.adapters["ascend"])
    assert one_lora == other_lora
    assert one.keys() == other.keys()
    moved = max(float(np.abs(one[name]).max()) for name in one if "lora_B" in name)
    assert moved > 1e-2, "B starts at zero: two adapters that stay there agree without having been trained"
    differences = [float(np.abs(one[name] - other[name]).max()) for name in one]
    print("adapter:", largest(differences))
    assert max(differences) <= ADAPTER, largest(differences)


@pytest.mark.parametrize("twins", PLAIN, indirect=True)
@pytest.mark.parametrize("trained_by", ["cuda", "ascend"])
def test_an_adapter_of_either_backend_is_read_by_both(twins: Twins, trained_by: str) -> None:
    rows = [list(range(3, 3 + length)) for length in (5, 16, 11)]
    logits, texts = {}, {}
    for name in ("cuda", "ascend"):
        model = load_backend(name).load_model(
            twins.job.model, twins.adapters[trained_by], pad_token_id=0, device="cpu", dtype="float32"
        )
        logits[name] = model.logits(rows)
        generator = TextGenerator(model, Numbers(), eos_token_ids=[2])
        texts[name] = generator.generate_ids(rows, Sampling(max_new_tokens=16))
    differences = [
        float(np.abs(one - other).max()) for one, other in zip(logits["cuda"], logits["ascend"], strict=True)
    ]
    print("logits:", largest(differences))
    assert max(differences) <= LOGITS, largest(differences)
    assert texts["cuda"] == texts["ascend"]


class Numbers:
    """A tokenizer whose text is its ids."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))
