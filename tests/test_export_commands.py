"""The commands of export and merge, as the command line mounts them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import missing_packages
from twintune.backends.job import Lora
from twintune.converters.adapter import WEIGHTS, make_initial_adapter, write_adapter
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.mindspore_checkpoint import write_checkpoint
from twintune.converters.names import adapter_names
from twintune.errors import UserError
from twintune.export_commands import export_app, merge
from twintune.models import read_model_config

needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="makes and runs a model with torch")
HEAVY = {"torch", "mindspore", "mindformers", "transformers", "datasets", "fastchat", "pyarrow", "peft"}
LORA = Lora(4, 8.0, 0.0, ("q_proj", "down_proj"))

app = typer.Typer()
app.add_typer(export_app, name="export")
app.command()(merge)


def run(*arguments: str | Path) -> str:
    """What a command prints; raises what it raises."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def trained(model: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    draw = np.random.default_rng(1)
    initial = make_initial_adapter(read_model_config(model), LORA, seed=0)
    return {name: (draw.normal(size=one.shape) * 0.1).astype(np.float32) for name, one in initial.items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_smallest_recipe(tmp_path, weights=False)
    return tmp_path / "tiny-llama"


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    write_adapter(tmp_path / "adapter", trained(model), LORA, str(model))
    return tmp_path / "adapter"


def test_the_commands_import_no_framework() -> None:
    program = "import sys, twintune.export_commands; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "typer" in out.split()
    assert not (HEAVY | {"numpy", "pydantic"}) & set(out.split())


@pytest.mark.parametrize("file_format", ["ckpt", "safetensors"])
def test_an_adapter_goes_there_and_back(tmp_path: Path, adapter: Path, file_format: str) -> None:
    there = run("export", "adapter", adapter, "--output-dir", tmp_path / "there", "--to", file_format)
    assert "adapter_config.json)" in there
    assert "r 4, lora_alpha 8, target_modules q_proj, down_proj" in there
    assert "8 matrices, read back and compared: all the same" in there
    back = run("export", "adapter", tmp_path / "there", "--output-dir", tmp_path / "back", "--to", "peft")
    assert f"settings: {tmp_path / 'there' / 'adapter.json'}" in back.replace("\n", "")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "back" / name).read_bytes() == (adapter / name).read_bytes()


def test_settings_come_from_flags_and_what_is_left_out_is_said(tmp_path: Path, model: Path) -> None:
    names = adapter_names(read_model_config(model), LORA.target_modules)
    matrices = [(names[theirs], one) for theirs, one in trained(model).items()]
    state = [(f"adam_m.{name}", one) for name, one in matrices]
    other = [("model.norm_out.weight", np.ones(64, np.float32)), ("global_step", np.array([7], np.int32))]
    write_checkpoint(tmp_path / "state.ckpt", [*matrices, *state, *other])
    flags = ("--model", model, "--lora-alpha", "8", "--target-modules", "q_proj,down_proj")
    out = run("export", "adapter", tmp_path / "state.ckpt", "--output-dir", tmp_path / "out", "--to", "peft", *flags)
    assert "settings: command line, and the rank that the matrices have" in out
    assert "saved after optimizer step 7" in out
    for line in ("8 entries, optimizer state", "1 entries, base weights", "1 entries, counters of the training"):
        assert f"left out: {line}" in out
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["lora_alpha"] == 8.0


def test_flags_of_the_other_way_are_refused(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(UserError, match="must be left out with --to ckpt"):
        run("export", "adapter", adapter, "--output-dir", tmp_path / "out", "--to", "ckpt", "--lora-alpha", "8")
    assert not (tmp_path / "out").exists()


@needs_torch
def test_weights_and_merge_say_what_they_did(tmp_path: Path) -> None:
    write_smallest_recipe(tmp_path)
    model = tmp_path / "tiny-llama"
    write_adapter(tmp_path / "adapter", trained(model), LORA, str(model))
    merged = run(
        "merge", tmp_path / "adapter", "--output-dir", tmp_path / "merged", "--backend", "cuda", "--device", "cpu"
    )
    assert "merged: 4 layers, r 4, scaling 2" in merged
    assert "greedy texts: 4 of 4 identical" in merged
    assert "dtype: float32 (as the base is stored)" in merged
    there = run("export", "weights", tmp_path / "merged", "--output-dir", tmp_path / "there", "--to", "ckpt")
    assert "21 tensors (21 in float32)" in there
    assert "read back and compared: all the same" in there
    checkpoint, back = tmp_path / "there" / "model.ckpt", tmp_path / "back"
    run("export", "weights", checkpoint, "--output-dir", back, "--to", "huggingface", "--model", tmp_path / "merged")
    name = "model.safetensors"
    assert (back / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
