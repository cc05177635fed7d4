"""The quickstart's own script, from data set to report, on a tiny model."""

import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.script_modules import import_script
from tests.shipped_recipes import run
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.backends import missing_packages
from twintune.recipe import load_recipe

ROOT = Path(__file__).parents[2]
MISSING = [*missing_packages("ascend"), *missing_packages("cuda")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs both backends, without {', '.join(MISSING)}"),
]


def train_here(program: list[str], *, cwd: Path, check: bool) -> "subprocess.CompletedProcess[bytes]":
    """`subprocess.run`, but for training: this process has imported the frameworks already."""
    if program[3] != "train":
        return subprocess.run(program, cwd=cwd, check=check)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        run(*program[3:])
    return subprocess.CompletedProcess(program, 0)


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script in a folder of its own, with the shipped recipe but for a tiny model and three steps."""
    model = save_chatml_tokenizer(tmp_path / "model")
    save_tiny_model(model, "llama", vocab_size=512, max_position_embeddings=512, num_hidden_layers=1)
    folder = tmp_path / "runs" / "quickstart"
    overrides = (
        f"model.name_or_path={model}",
        f"data.train={folder / 'data' / 'conversations.json'}",
        "data.cutoff_len=256",
        "train.max_steps=3",
        "generate.max_new_tokens=4",
    )
    recipe = load_recipe(ROOT / "yamls" / "quickstart_smollm2.yaml", overrides)
    recipe.save(tmp_path / "yamls" / "recipe.yaml")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "make_school_math.py", tmp_path / "scripts")
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    module = import_script("quickstart")
    for name, value in {
        "ROOT": tmp_path,
        "FOLDER": folder,
        "DATA": folder / "data",
        "RECIPE": tmp_path / "yamls" / "recipe.yaml",
        "HELD_OUT": 5,
        "subprocess": SimpleNamespace(run=train_here),
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_ends_with_a_report_and_reuses_its_runs(quickstart: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    quickstart.main()
    first = capfd.readouterr().out
    report = (quickstart.FOLDER / "report.md").read_text(encoding="utf-8")
    for name in ("cuda", "ascend"):
        assert f"--backend {name}" in first
        assert (quickstart.FOLDER / name / "adapter" / "adapter_model.safetensors").is_file()
    for words in ("base", "cuda adapter", "ascend adapter", "the quicker one on a CPU", "answered on ascend"):
        assert words in report
    assert (quickstart.FOLDER / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    recipe = load_recipe(quickstart.RECIPE)
    for name in quickstart.BACKENDS:
        assert quickstart.train(name, recipe) == quickstart.FOLDER / name
    again = capfd.readouterr().out
    assert again.count("is used again") == 2
    assert "--backend" not in again
