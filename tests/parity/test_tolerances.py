"""The limits come from the golden numbers, hold for runs that differ by rounding alone, and not for faults."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.script_modules import import_script
from twintune.backends import StepGradients, load_backend
from twintune.backends.job import TrainJob
from twintune.errors import UserError
from twintune.parity.tolerances import GROWTH, MOST, RELATIVE, SPREADS, limits

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "tolerances.json").read_text())
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/derive_tolerances.py as a module: its jobs and its measures."""
    return import_script("derive_tolerances")


def golden(dtype: str, layers: int) -> list[dict[str, float]]:
    return [
        spread for case, spread in GOLDEN["spreads"].items() if f" {dtype}," in case and f" {layers} layers" in case
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_spreads_are_the_largest_of_the_golden_ones(dtype: str) -> None:
    cases = golden(dtype, layers=2)
    assert SPREADS[dtype] == {name: max(case[name] for case in cases) for name in GROWTH}


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_cover_the_spreads_of_a_deeper_network(dtype: str) -> None:
    (deep,) = golden(dtype, layers=8)
    found = limits(dtype, layers=8, learning_rate=1.0)
    assert {name: deep[name] for name in found if deep[name] > found[name].value} == {}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_implementations_differ_by_less_than_the_limits(dtype: str) -> None:
    found = limits(dtype, learning_rate=1.0)
    for case, between in GOLDEN["between"].items():
        if case.startswith(dtype):
            assert {name: between[name] for name in found if between[name] > found[name].value} == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_cover_the_spreads_of_a_real_model(dtype: str) -> None:
    found = limits(dtype, layers=30)
    real = GOLDEN["real"][f"cuda, {dtype}, SmolLM2-135M-Instruct, 30 layers of 576"]
    most = {name: min(value, MOST if name in RELATIVE else math.inf) for name, value in real.items()}
    assert {name: value for name, value in most.items() if value > found[name].value} == {}


def test_forward_limits_stop_growing_where_nothing_was_measured() -> None:
    assert limits("bfloat16", layers=80)["logits"] == limits("bfloat16", layers=8)["logits"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_grow_with_depth_and_say_where_they_come_from(dtype: str) -> None:
    small, deep = limits(dtype), limits(dtype, layers=8)
    assert small.keys() == deep.keys() == {*GROWTH, "gradient_cosine"}
    for name, power in GROWTH.items():
        most = MOST if name in RELATIVE else math.inf
        assert deep[name].value == pytest.approx(min(most, small[name].value * 4**power))
        assert "rounding at random" in small[name].source or "promised" in small[name].source


def test_float32_keeps_what_the_project_promises() -> None:
    assert limits("float32")["loss"].value == 1e-5
    assert limits("float32")["mean_signed_residual"].value == 1e-6
    assert limits("float32", layers=30)["loss"].value < 1e-4
    assert limits("float32", layers=30)["cross_logits"].value < 1e-4


def test_a_dtype_without_limits_is_refused() -> None:
    with pytest.raises(UserError, match="dtype must be float32, bfloat16, float16, got 'int8'"):
        limits("int8")


class Measured:
    """What a job's network computes before it is trained."""

    def __init__(self, script: ModuleType, job: TrainJob) -> None:
        probe = load_backend("cuda").open_probe(job)
        initial = probe.adapter()
        self.bare = script.look(probe, initial)
        self.adapted = script.look(probe, script.with_random_b(initial, seed=0))
        self.gradients: StepGradients = probe.gradients(job.order[0])

    def excess(self, script: ModuleType, other: "Measured", dtype: str) -> dict[str, float]:
        """Each difference from another, in limits."""
        found = limits(dtype)
        logits = [script.logits_apart(self.bare, other.bare), script.logits_apart(self.adapted, other.adapted)]
        gradient = script.worst(script.relative_norm, self.gradients.gradients, other.gradients.gradients)
        return {"logits": max(logits) / found["logits"].value, "gradient": gradient / found["gradient"].value}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def rounded(request: pytest.FixtureRequest, script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dtype, a job, and what it measures."""
    folder = tmp_path_factory.mktemp(request.param)
    job = script.make_job(folder / "0", script.SMALL, request.param, seed=0)
    return request.param, job, Measured(script, job)


def test_other_rounding_is_within_the_limits(rounded: Any, script: ModuleType, tmp_path: Path) -> None:
    dtype, _, measured = rounded
    other = Measured(script, script.make_job(tmp_path / "job", script.SMALL, dtype, seed=100))
    excess = measured.excess(script, other, dtype)
    assert max(excess.values()) <= 1, excess
    assert min(excess.values()) > 0, "the same rounding shows nothing"


def test_a_wrong_rotary_base_is_far_outside(rounded: Any, script: ModuleType, tmp_path: Path) -> None:
    dtype, job, measured = rounded
    model = tmp_path / "model"
    shutil.copytree(job.model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    assert measured.excess(script, Measured(script, replace(job, model=model)), dtype)["logits"] > 3


def test_a_halved_scaling_is_far_outside(rounded: Any, script: ModuleType) -> None:
    dtype, job, measured = rounded
    halved = replace(job, adapter=replace(job.lora, lora_alpha=job.lora.lora_alpha / 2))
    assert measured.excess(script, Measured(script, halved), dtype)["gradient"] > 1.8
