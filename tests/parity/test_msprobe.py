"""The folder for msprobe: its scripts run here with a stand-in for the debugger, on the real networks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_models import save_tiny_model
from twintune.backends import missing_packages
from twintune.backends.job import Lora
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.converters.names import base_names
from twintune.errors import UserError
from twintune.models import read_model_config
from twintune.parity.msprobe import layer_mapping, stage_modules, whole_length, write_msprobe
from twintune.recipe_sections import LINEAR_LAYERS

LAYERS = 2
CONFIG: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": LAYERS}
# Stands in for msprobe.{pytorch,mindspore}: it names the modules that msprobe would hook, as msprobe does.
STAND_IN = """
import json
from pathlib import Path

class PrecisionDebugger:
    def __init__(self, config_path):
        self.config = json.loads(Path(config_path).read_text())
        self.calls = []
    def start(self, model):
        modules = model.named_modules() if hasattr(model, "named_modules") else model.cells_and_names()
        self.names = [name for name, _ in modules]
        self.calls.append("start")
    def stop(self):
        self.calls.append("stop")
    def step(self):
        (wanted,) = self.config[self.config["task"]]["list"]
        dumped = [name for name in self.names if wanted in f"{name}."]
        found = {"calls": [*self.calls, "step"], "names": self.names, "dumped": dumped}
        Path(self.config["dump_path"] + ".json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, an adapter on it, the folder for msprobe, and the stand-in."""
    folder = tmp_path_factory.mktemp("msprobe")
    model = save_tiny_model(folder / "model", "llama", num_hidden_layers=LAYERS)
    config = read_model_config(model)
    lora = Lora(4, 8, 0.0, LINEAR_LAYERS)
    write_adapter(folder / "adapter", make_initial_adapter(config, lora, seed=3), lora, "model")
    written = write_msprobe(
        folder / "msprobe", stage="layers.1", config=config, row=[5, 6, 7], pad_token_id=0, dtype="float32"
    )
    assert {path.name for path in written} >= {"README.md", "layer_mapping.yaml", "row.json"}
    for name in ("pytorch", "mindspore"):
        package = folder / "stand_in" / "msprobe" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(STAND_IN)
    (folder / "stand_in" / "msprobe" / "__init__.py").write_text("")
    return folder


def dumped(prepared: Path, framework: str) -> dict[str, Any]:
    """Run one side's script and give what the stand-in saw."""
    environment = os.environ | {"PYTHONPATH": str(prepared / "stand_in")}
    command = [sys.executable, f"dump_{framework}.py", str(prepared / "model"), str(prepared / "adapter")]
    ended = subprocess.run(
        command, cwd=prepared / "msprobe", env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads((prepared / "msprobe" / f"dump_{framework}.json").read_text())
    return found


@pytest.mark.cuda_alone
def test_the_pytorch_script_dumps_the_layer_and_the_map_names_its_modules(prepared: Path) -> None:
    found = dumped(prepared, "pytorch")
    mapping = yaml.safe_load((prepared / "msprobe" / "layer_mapping.yaml").read_text())["TopLayer"]
    assert found["calls"] == ["start", "stop", "step"]
    assert set(mapping.values()) <= set(found["names"])
    assert "model.layers.1" in found["dumped"]
    assert "model.layers.1.self_attn.q_proj" in found["dumped"]
    assert all(name.startswith("model.layers.1") for name in found["dumped"])


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="MindSpore and MindFormers are not installed")
def test_the_mindspore_script_dumps_the_layer_and_the_map_names_its_cells(prepared: Path) -> None:
    found = dumped(prepared, "mindspore")
    mapping = yaml.safe_load((prepared / "msprobe" / "layer_mapping.yaml").read_text())["TopLayer"]
    assert found["calls"] == ["start", "stop", "step"]
    assert set(mapping) <= set(found["names"])
    assert "model.layers.1" in found["dumped"]
    assert "model.layers.1.attention.wq" in found["dumped"]
    assert all(name.startswith("model.layers.1") for name in found["dumped"])


def test_every_weight_of_the_table_lies_in_a_mapped_module() -> None:
    mapping = layer_mapping(CONFIG)["TopLayer"]
    config = {**CONFIG, "model_type": "llama"}
    for theirs, ours in base_names(config).items():
        assert mapping[ours.rpartition(".")[0]] == theirs.rpartition(".")[0]


@pytest.mark.parametrize(
    ("stage", "pytorch", "mindspore"),
    [
        ("layers.1", "model.layers.1.", "model.layers.1."),
        ("embed_tokens", "model.embed_tokens.", "model.tok_embeddings."),
        ("norm", "model.norm.", "model.norm_out."),
        ("logits", "lm_head.", "lm_head."),
    ],
)
def test_a_stage_is_found_by_what_its_modules_are_called(stage: str, pytorch: str, mindspore: str) -> None:
    assert stage_modules(stage, CONFIG) == (pytorch, mindspore)


@pytest.mark.parametrize("stage", ["layers.2", "layers.x", "attention"])
def test_a_stage_that_the_model_has_not_is_refused(stage: str) -> None:
    with pytest.raises(UserError, match=f"must be embed_tokens.*of 2 layers, got '{stage}'"):
        stage_modules(stage, CONFIG)


def test_a_row_is_repeated_to_a_multiple_of_16() -> None:
    assert whole_length([5, 6, 7]) == [5, 6, 7] * 5 + [5]
    assert whole_length(range(32)) == list(range(32))


def test_an_empty_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must have a token, got none"):
        write_msprobe(tmp_path / "out", stage="norm", config=CONFIG, row=[], pad_token_id=0, dtype="float32")
    assert not (tmp_path / "out").exists()
