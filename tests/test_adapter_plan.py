"""`adapter` in a recipe: what goes together, what the plan says, and what a whole run with a prefix leaves."""

import json
from pathlib import Path

import pytest

from tests.smallest_recipe import write_smallest_recipe
from twintune.adapter_plan import adapter_lines, count_parameters, seam_adapter
from twintune.backends import missing_packages
from twintune.backends.job import Lora, PrefixTuning
from twintune.errors import UserError
from twintune.models import read_model_config
from twintune.recipe import load_recipe

PREFIX = ("adapter=ptuning_v2", "ptuning_v2.num_virtual_tokens=4")
PROJECTED = (*PREFIX, "ptuning_v2.prefix_projection=true", "ptuning_v2.encoder_hidden_size=12")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smallest_recipe(tmp_path_factory.mktemp("given"), weights=False)


@pytest.fixture
def recipe_file(given: Path, tmp_path: Path) -> Path:
    """The smallest recipe without its section lora."""
    lines = given.read_text(encoding="utf-8").replace("./", f"{given.parent}/").splitlines(keepends=True)
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(line for line in lines if not line.startswith("lora")), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("adapter=ptuning",), "adapter must be 'lora' or 'ptuning_v2', got 'ptuning'"),
        (("ptuning_v2.num_virtual_tokens=4",), "ptuning_v2 must be left out where adapter is lora, got num_virtual"),
        ((*PREFIX, "lora.r=4"), "lora must be left out where adapter is ptuning_v2, got r"),
        ((*PREFIX, "ptuning_v2.num_virtual_tokens=0"), "ptuning_v2.num_virtual_tokens must be greater than or equal"),
        ((*PREFIX, "ptuning_v2.prefix_projection=maybe"), "ptuning_v2.prefix_projection must be a valid boolean"),
        ((*PREFIX, "ptuning_v2.encoder_hidden_size=4"), "must be left out where ptuning_v2.prefix_projection is false"),
        ((*PROJECTED, "ptuning_v2.encoder_hidden_size=0"), "ptuning_v2.encoder_hidden_size must be greater than or"),
        ((*PREFIX, "ptuning_v2.prefix_projection=true"), "ptuning_v2.encoder_hidden_size must be given where"),
        ((*PREFIX, "ptuning_v2.virtual_tokens=4"), "did you mean ptuning_v2.num_virtual_tokens?"),
        ((*PREFIX, "data.packing=true"), "data.packing must be false where adapter is ptuning_v2, got true"),
        ((*PREFIX, "model.load_in_4bit=true"), "model.load_in_4bit must be false where adapter is ptuning_v2"),
        ((*PREFIX, "train.gradient_checkpointing=true"), "train.gradient_checkpointing must be false where adapter is"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe_file: Path, overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file, overrides)
    (message,) = caught.value.messages
    assert message.startswith(f"{recipe_file}: ")
    assert sentence in message


@pytest.mark.parametrize("overrides", [(), PREFIX, PROJECTED], ids=["lora", "prefix", "projected"])
def test_a_saved_recipe_is_read_back(recipe_file: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = load_recipe(recipe_file, overrides)
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_a_prefix_has_the_sizes_of_the_models_keys(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, PROJECTED)
    config = read_model_config(Path(recipe.model.name_or_path))
    prefix = seam_adapter(recipe, config, "cuda")
    assert prefix == PrefixTuning(4, 12, num_layers=2, num_attention_heads=2, token_dim=32)
    assert count_parameters(prefix, config) == 4 * 32 + (32 * 12 + 12) + (12 * 128 + 128)
    assert dict(adapter_lines(recipe, prefix, 5000)) == {
        "P-tuning v2": "4 virtual tokens before the first of every layer, made by a network of hidden size 12",
        "trainable parameters": "5,000 (prefix)",
        "dropout": "none: a prefix has none",
    }
    assert isinstance(seam_adapter(load_recipe(recipe_file), config, "ascend"), Lora)


def test_phi_takes_no_prefix_on_mindspore(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, PREFIX)
    config = read_model_config(Path(recipe.model.name_or_path))
    with pytest.raises(UserError, match="adapter must be lora for phi with --backend ascend, got 'ptuning_v2'"):
        seam_adapter(recipe, config | {"model_type": "phi"}, "ascend")


@pytest.mark.skipif(bool(missing_packages("cuda")), reason="trains with torch")
# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_run_with_a_prefix_from_recipe_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twintune.report_command import report
    from twintune.training import run_training
    from twintune.training_plan import decide

    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    path = write_smallest_recipe(tmp_path / "work")
    text = path.read_text(encoding="utf-8").replace("lora: {r: 8", "# lora: {r: 8")
    path.write_text(text + "generate: {max_new_tokens: 8, sample_prompts: [你好]}\n", encoding="utf-8")
    machine = ("backend.name=cuda", "backend.device=cpu", "data.val_size=0.2", "train.max_steps=4")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="must fit the model's 512 positions, got 500 and"):
        decide(load_recipe(path, [*PREFIX, *machine, "ptuning_v2.num_virtual_tokens=500"]), out)
    rhythm = ("ptuning_v2.num_virtual_tokens=64", "train.eval_steps=2", "train.save_steps=2")
    run_training(decide(load_recipe(path, [*PREFIX, *machine, *rhythm]), out))
    assert {"adapter", "checkpoint-2", "checkpoint-4", "evaluation.jsonl"} <= {entry.name for entry in out.iterdir()}
    assert load_recipe(out / "adapter" / "recipe.yaml").adapter == "ptuning_v2"
    report(out)
    assert "P-tuning v2" in (out / "report.md").read_text(encoding="utf-8")
    (sample,) = json.loads((out / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert sample["before"] != sample["after"]
