"""What the plan says of memory and time, from a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_backend import FakeBackend
from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import Choice, Device
from twintune.backends.job import Step
from twintune.memory_view import estimated_memory, memory_lines
from twintune.recipe import load_recipe
from twintune.step_cost import cost_meter
from twintune.training_plan import Run, decide

GIB = 2**30


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smallest_recipe(tmp_path_factory.mktemp("work"), weights=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, recipe_file: Path) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setenv("TWINTUNE_CACHE", str(recipe_file.parent / "cache"))
    monkeypatch.setattr("twintune.training_plan.load_backend", lambda _: fake)
    monkeypatch.setattr("twintune.training_plan.choose_backend", lambda asked: Choice("cuda", f"asked {asked}"))
    return fake


def decided(recipe_file: Path, *overrides: str) -> Run:
    return decide(load_recipe(recipe_file, overrides), recipe_file.parent / "out")


def put_in(monkeypatch: pytest.MonkeyPatch, fake: FakeBackend, device: Device) -> None:
    monkeypatch.setattr(fake, "describe_device", lambda _: device)


def test_memory_is_told_by_part(fake: FakeBackend, recipe_file: Path) -> None:
    run = decided(recipe_file)
    told = dict(memory_lines(run))["memory, estimated"]
    assert told.startswith(f"{estimated_memory(run) / 2**20:.2f} MiB of tensors: weights 0.4")
    assert "activations" in told


def test_a_device_without_known_memory_is_asked_for(
    fake: FakeBackend, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(monkeypatch, fake, Device("CPU", None))
    lines = dict(memory_lines(decided(recipe_file)))
    assert lines["largest micro-batch"] == "not known: CPU tells no memory, set backend.device_memory_gib"
    assert lines["time, estimated"].endswith("on a device without a known peak (backend.device_peak_tflops)")


def test_rows_fit_the_memory_that_is_found_known_or_given(
    fake: FakeBackend, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "of 64 GiB (Fake 910B)" in dict(memory_lines(decided(recipe_file)))["largest micro-batch"]
    put_in(monkeypatch, fake, Device("NVIDIA H100 80GB HBM3", 2 * GIB))
    found = dict(memory_lines(decided(recipe_file)))["largest micro-batch"]
    given = dict(memory_lines(decided(recipe_file, "backend.device_memory_gib=3")))["largest micro-batch"]
    assert "fit 90% of 2 GiB (NVIDIA H100 80GB HBM3) less 1 GiB for its libraries" in found
    assert "of 3 GiB (backend.device_memory_gib)" in given
    assert int(given.split()[0]) > int(found.split()[0]) > 0


def test_a_row_that_does_not_fit_has_remedies(fake: FakeBackend, recipe_file: Path) -> None:
    told = dict(memory_lines(decided(recipe_file, "backend.device_memory_gib=1")))["largest micro-batch"]
    assert told.startswith("none: a row of ")
    assert "train.gradient_checkpointing" in told


def test_time_is_that_of_the_flops_of_all_steps(fake: FakeBackend, recipe_file: Path) -> None:
    run = decided(recipe_file, "backend.device_peak_tflops=0.001")
    meter = cost_meter(run)
    costs = [meter(Step(number, 1.0, 1.0, 1e-3, 40, 1.0)) for number in range(1, 11)]
    flops = sum(cost.mfu * 1e9 for cost in costs if cost.mfu is not None)
    told = dict(memory_lines(run))["time, estimated"]
    assert "FLOPs at 40% of 0.001 TFLOP/s" in told
    assert float(told.split(": ")[1].split()[0]) == pytest.approx(flops, rel=0.03), "trained tokens are 40 in the mean"


def test_a_step_counts_all_tokens_of_its_rows(fake: FakeBackend, recipe_file: Path) -> None:
    run = decided(recipe_file, "train.max_steps=6")  # each of 12 rows once
    meter = cost_meter(run)
    costs = [meter(Step(number, 1.0, 1.0, 1e-3, 40, 0.5)) for number in range(1, 7)]
    assert sum(cost.input_tokens for cost in costs) == run.prepared.summary.tokens
    assert [(cost.tokens_per_second, cost.mfu) for cost in costs] == [(80.0, None)] * 6
    assert min(cost.peak_memory for cost in costs) > 10 * 2**20, "of the process"
    npu = replace(run, job=replace(run.job, device="npu"))
    assert cost_meter(npu)(Step(1, 1.0, 1.0, 1e-3, 40, 0.5)).peak_memory == 7 * GIB
