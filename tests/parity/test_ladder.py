"""The bar of the project: every tiny model passes all twelve rungs between the two backends, in float32."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.parity.jobs import KINDS, STEPS, Recordings
from twintune.backends import missing_packages
from twintune.converters.adapter import read_adapter
from twintune.parity.bundle import ADAPTER, TEXTS
from twintune.parity.ladder import LADDER, compare
from twintune.parity.verdict import Verdict

MISSING = [*missing_packages("ascend"), *missing_packages("cuda")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs both backends, without {', '.join(MISSING)}"),
]

LOSS = 1e-5
MEAN_SIGNED_RESIDUAL = 1e-6
ADAPTER_WEIGHTS = 1e-4


def figures(verdict: Verdict) -> str:
    return "\n".join(f"{rung.number} {one.name}: {one.value:.2e}" for rung in verdict.rungs for one in rung.measures)


@pytest.mark.parametrize("kind", KINDS)
def test_all_rungs_hold(recordings: Recordings, kind: str) -> None:
    cuda, ascend = recordings.pair(kind)
    verdict = compare(cuda, ascend)
    print(figures(verdict))
    assert [rung.status for rung in verdict.rungs] == ["same"] * len(LADDER), verdict.first_difference
    residual = np.array([other.loss - one.loss for one, other in zip(cuda.steps, ascend.steps, strict=True)])
    assert len(residual) == STEPS
    assert np.abs(residual).max() <= LOSS
    assert abs(residual.mean()) <= MEAN_SIGNED_RESIDUAL
    assert greedy(cuda.json(TEXTS)) == greedy(ascend.json(TEXTS))


@pytest.mark.parametrize("kind", KINDS)
def test_what_agrees_was_trained(recordings: Recordings, kind: str) -> None:
    """Two adapters that stay where they began would agree as well."""
    cuda, ascend = recordings.pair(kind)
    (_, one), (_, other) = (read_adapter(bundle.folder / ADAPTER) for bundle in (cuda, ascend))
    moved = max(float(np.abs(one[name]).max()) for name in one if "lora_B" in name)
    assert moved > 1e-2
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) <= ADAPTER_WEIGHTS
    assert cuda.steps[-1].loss < cuda.steps[0].loss
    clipped = [step.grad_norm > cuda.facts["recipe"]["train"]["max_grad_norm"] for step in cuda.steps]
    assert any(clipped), "clipping was never tried"


def greedy(texts: dict[str, Sequence[dict[str, list[int]]]]) -> list[list[int]]:
    return [text["greedy"] for text in texts["texts"]]
