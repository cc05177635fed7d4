from pathlib import Path
from typing import Any

import pytest

from twintune.converters.names import LINEAR_MODULES
from twintune.converters.target_modules import OLD_NAMES
from twintune.errors import UserError
from twintune.recipe import Recipe, load_recipe
from twintune.recipe_sections import TargetModule

SMALLEST = "model: {name_or_path: ./tiny-llama}\ndata: {train: ./data.json}\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> list[str]:
    """The messages of a recipe that must not load, without the file's name that each begins with."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert all(message.startswith(f"{path}: ") for message in caught.value.messages)
    return [message.removeprefix(f"{path}: ") for message in caught.value.messages]


def test_defaults_are_those_of_the_fields(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.train.per_device_train_batch_size == 2
    assert recipe.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert recipe.backend.name == recipe.backend.device == recipe.backend.dtype == "auto"


def test_the_target_modules_are_the_linear_layers() -> None:
    assert TargetModule.__args__ == (*LINEAR_MODULES, *OLD_NAMES)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("model.name_or_pth=x", "did you mean model.name_or_path?"),
        ("data.templte=x", "did you mean data.template?"),
        ("lora.lora_alfa=1", "did you mean lora.lora_alpha?"),
        ("model.load_in_4_bit=true", "did you mean model.load_in_4bit?"),
        ("lora.load_in_4bit=true", "did you mean model.load_in_4bit?"),
        ("train.learning_rat=1", "did you mean train.learning_rate?"),
        ("generate.max_new_token=1", "did you mean generate.max_new_tokens?"),
        ("backend.devise=cpu", "did you mean backend.device?"),
        ("backend.ascend.override.a=1", "did you mean backend.ascend.overrides?"),
        ("lora.learning_rate=1", "did you mean train.learning_rate?"),
        ("train.template=x", "did you mean data.template?"),
        ("train.lora_alpha=1", "did you mean lora.lora_alpha?"),
        ("generate.max_steps=3", "did you mean train.max_steps?"),
        ("backend.ascend.xyzzy=1", "the keys here are data_parallel, model_parallel, pipeline_stage, overrides"),
        ("trian.max_steps=1", "did you mean train?"),
    ],
)
def test_unknown_keys_are_refused_with_the_key_that_was_meant(recipe_file: Path, override: str, hint: str) -> None:
    (sentence,) = refusal(recipe_file, override)
    name, _, rest = sentence.partition(" must be a key that twintune knows, got an unknown one; ")
    assert override.startswith(name)
    assert rest == hint


def test_a_leaf_at_the_top_is_sent_to_its_section(recipe_file: Path) -> None:
    recipe_file.write_text(SMALLEST + "learning_rate: 1.0e-4\n", encoding="utf-8")
    assert refusal(recipe_file) == [
        "learning_rate must be a key that twintune knows, got an unknown one; did you mean train.learning_rate?"
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lora.r=0", "lora.r must be greater than or equal to 1, got 0"),
        ("lora.lora_dropout=1.0", "lora.lora_dropout must be less than 1, got 1.0"),
        (
            "train.optim=adamw",
            "train.optim must be 'adamw_torch', 'adam_weight_decay', 'sgd', 'lion_32bit', 'adamw_8bit', "
            "'paged_adamw_32bit' or 'paged_adamw_8bit', got 'adamw'",
        ),
        ("train.sgd_momentum=0.9", "train.sgd_momentum must be left out where train.optim is adamw_torch, got 0.9"),
        (
            "train.lr_scheduler_type=reduce_lr_on_plateau",
            "train.lr_scheduler_type must be a schedule known before the first step (this one follows the evaluation "
            "loss), got 'reduce_lr_on_plateau'",
        ),
        ("train.learning_rate=.inf", "train.learning_rate must be a finite number, got inf"),
        ("train.learning_rate=.nan", "train.learning_rate must be a finite number, got nan"),
        ("lora.target_modules=[]", "lora.target_modules must name at least one layer, got []"),
        (
            "lora.target_modules=[wq]",
            "lora.target_modules.0 must be 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', "
            "'down_proj', 'dense', 'fc1', 'fc2', 'Wqkv' or 'out_proj', got 'wq'",
        ),
        ("model.bnb_4bit_quant_type=fp4", "model.bnb_4bit_quant_type must be 'nf4', got 'fp4'"),
        ("model.load_in_4bit=nf4", "model.load_in_4bit must be a valid boolean, unable to interpret input, got 'nf4'"),
        (
            "model.bnb_4bit_use_double_quant=true",
            "model.bnb_4bit_use_double_quant must be false where model.load_in_4bit is false, got True",
        ),
        ("model.pad_to_multiple_of=0", "model.pad_to_multiple_of must be greater than or equal to 1, got 0"),
        ("lora.modules_to_save=[norm]", "lora.modules_to_save.0 must be 'embed_tokens' or 'lm_head', got 'norm'"),
        (
            "lora.use_rslora=sometimes",
            "lora.use_rslora must be a valid boolean, unable to interpret input, got 'sometimes'",
        ),
        ("train.warmup_steps=-1", "train.warmup_steps must be greater than or equal to 0, got -1"),
        ("train.eval_steps=0", "train.eval_steps must be greater than or equal to 1, got 0"),
        ("train.evals_per_epoch=0", "train.evals_per_epoch must be greater than or equal to 1, got 0"),
        (
            "train.save_steps=0.5",
            "train.save_steps must be a valid integer, got a number with a fractional part, got 0.5",
        ),
        ("train.save_total_limit=0", "train.save_total_limit must be greater than or equal to 1, got 0"),
        (
            "train.per_device_eval_batch_size=0",
            "train.per_device_eval_batch_size must be greater than or equal to 1, got 0",
        ),
        (
            "train.load_best_model_at_end=true",
            "train.load_best_model_at_end must be false where neither "
            "train.eval_steps nor train.evals_per_epoch is given, got True",
        ),
        (
            "train.gradient_checkpointing=7",
            "train.gradient_checkpointing must be a valid boolean, unable to interpret input, got 7",
        ),
        (
            "train.report_to=[comet]",
            "train.report_to.0 must be 'tensorboard', 'wandb', 'swanlab' or 'mlflow', got 'comet'",
        ),
        ("backend.name=npu", "backend.name must be 'auto', 'cuda' or 'ascend', got 'npu'"),
    ],
)
def test_wrong_values_are_told_in_one_sentence(recipe_file: Path, override: str, sentence: str) -> None:
    assert refusal(recipe_file, override) == [sentence]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["train.warmup_ratio=0.1", "train.warmup_steps=3"],
            "train.warmup_steps must be 0 where train.warmup_ratio is given, got 3",
        ),
        (
            ["train.eval_steps=3", "train.evals_per_epoch=2"],
            "train.evals_per_epoch must be left out where train.eval_steps is given, got 2",
        ),
        (
            ["train.save_steps=3", "train.saves_per_epoch=2"],
            "train.saves_per_epoch must be left out where train.save_steps is given, got 2",
        ),
    ],
)
def test_what_says_the_same_thing_twice_is_refused(recipe_file: Path, overrides: list[str], sentence: str) -> None:
    assert refusal(recipe_file, *overrides) == [sentence]


@pytest.mark.parametrize(
    ("kind", "numbers", "rule"),
    [
        ("cosine", "{power: 2}", "nothing, as cosine has no numbers of its own"),
        ("polynomial", "{powr: 2}", "keys of polynomial alone, and powr is none (did you mean power?)"),
        ("polynomial", "{x: 2}", "keys of polynomial alone, and x is none (its keys are lr_end, power)"),
        (
            "polynomial",
            "{power: 0, lr_end: a}",
            "lr_end that is a valid number, unable to parse string as a number; power that is greater than 0",
        ),
        ("polynomial", "{lr_end: 1}", "a lowest learning rate below train.learning_rate 0.0001"),
        ("cosine_with_restarts", "{num_cycles: 1.5}", "num_cycles that is a valid integer, got a number with a "),
        ("cosine_with_min_lr", "{}", "min_lr or min_lr_rate, one of them"),
        ("cosine_with_min_lr", "{min_lr: 0, min_lr_rate: 0}", "min_lr or min_lr_rate, one of them"),
        ("cosine_with_min_lr", "{min_lr: 1e-3}", "a lowest learning rate below train.learning_rate 0.0001"),
        ("inverse_sqrt", "{timescale: 0}", "timescale that is greater than or equal to 1"),
        ("warmup_stable_decay", "{}", "num_decay_steps, which warmup_stable_decay needs"),
        (
            "warmup_stable_decay",
            "{num_decay_steps: 3, decay_type: exp}",
            "decay_type that is 'linear', 'cosine' or '1-sqrt'",
        ),
    ],
)
def test_the_numbers_of_a_schedule_are_checked(recipe_file: Path, kind: str, numbers: str, rule: str) -> None:
    (sentence,) = refusal(recipe_file, f"train.lr_scheduler_type={kind}", f"train.lr_scheduler_kwargs={numbers}")
    assert sentence.startswith(f"train.lr_scheduler_kwargs must hold {rule}")


def test_the_numbers_of_a_schedule_are_spelled_out(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["train.lr_scheduler_type=polynomial", "train.lr_scheduler_kwargs.power=2"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.train.lr_scheduler_kwargs == {"lr_end": 1e-7, "power": 2.0}
    recipe.save(tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml").train == recipe.train


@pytest.mark.parametrize("value", ["null", "5", "[1]"])
def test_a_section_that_is_no_mapping_is_told(recipe_file: Path, value: str) -> None:
    recipe_file.write_text(SMALLEST + f"lora: {value}\n", encoding="utf-8")
    (sentence,) = refusal(recipe_file)
    assert sentence.startswith("lora must be a mapping of keys, got ")


def test_missing_keys_are_told(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {}\n", encoding="utf-8")
    assert refusal(path) == ["model must be given, got nothing", "data.train must be given, got nothing"]


def test_all_problems_come_at_once(recipe_file: Path) -> None:
    assert len(refusal(recipe_file, "lora.r=0", "train.seed=-1", "data.cutof_len=9")) == 3


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("train.learning_rate=2E-5", "train", "learning_rate", 2e-5),
        ("train.max_steps=7", "train", "max_steps", 7),
        ("model.trust_remote_code=true", "model", "trust_remote_code", True),
        ("lora.target_modules=[q_proj, v_proj]", "lora", "target_modules", ("q_proj", "v_proj")),
        ("data.system=Say x=3.", "data", "system", "Say x=3."),
        ("model.pad_token='3e5'", "model", "pad_token", "3e5"),
        ("data.system=e", "data", "system", "e"),
    ],
)
def test_overrides_have_the_type_of_their_key(
    recipe_file: Path, override: str, section: str, key: str, value: Any
) -> None:
    got = getattr(getattr(load_recipe(recipe_file, [override]), section), key)
    assert (got, type(got)) == (value, type(value))


def test_an_override_replaces_what_the_file_says_and_the_last_one_wins(recipe_file: Path) -> None:
    recipe_file.write_text(SMALLEST + "train: {max_steps: 3, seed: 1}\n", encoding="utf-8")
    recipe = load_recipe(recipe_file, ["train.max_steps=4", "train.max_steps=5"])
    assert (recipe.train.max_steps, recipe.train.seed) == (5, 1)


def test_an_exponent_is_a_number_in_the_file_too(recipe_file: Path) -> None:
    keys = "backend: {ascend: {overrides: {optimizer: {eps: 1e-6, name: '1e-6'}}}}\n"
    recipe_file.write_text(SMALLEST + keys, encoding="utf-8")
    assert load_recipe(recipe_file).backend.ascend.overrides == {"optimizer": {"eps": 1e-6, "name": "1e-6"}}


def test_mindformers_keys_can_be_nested(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file, ["backend.ascend.overrides.optimizer.eps=1e-6", "backend.ascend.overrides.seed=3"]
    )
    assert recipe.backend.ascend.overrides == {"optimizer": {"eps": 1e-6}, "seed": 3}


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("train.max_steps", "an override must be section.key=value"),
        ("max_steps=3", "an override must be section.key=value"),
        (".max_steps=3", "an override must be section.key=value"),
        ("train.=3", "an override must be section.key=value"),
        ("train.max_steps=[3", "train.max_steps must be a YAML value"),
        ("model.name_or_path.x=3", "model.name_or_path.x must lead through sections"),
    ],
)
def test_malformed_overrides_are_told(recipe_file: Path, override: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file, [override])
    (message,) = caught.value.messages
    assert message.startswith(f"command line: {rule}")


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(SMALLEST, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("here/recipe.yaml"))
    assert [file.path for file in recipe.data.train] == [str(folder / "data.json")]
    assert recipe.model.name_or_path == str(folder / "tiny-llama")


def test_a_model_name_is_a_path_only_if_it_is_there(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["model.name_or_path=org/name"]).model.name_or_path == "org/name"
    (recipe_file.parent / "org" / "name").mkdir(parents=True)
    found = load_recipe(recipe_file, ["model.name_or_path=org/name"]).model.name_or_path
    assert found == str(recipe_file.parent / "org" / "name")


def test_a_saved_recipe_loads_equal_from_anywhere(recipe_file: Path, tmp_path: Path) -> None:
    overrides = [
        "train.learning_rate=1e-4",
        "lora.r=4",
        "model.pad_token='3e5'",
        "backend.ascend.overrides.a.b=1e-7",
        "data.system=简短回答。",
    ]
    recipe = load_recipe(recipe_file, overrides)
    elsewhere = tmp_path / "elsewhere" / "recipe.yaml"
    recipe.save(elsewhere)
    assert load_recipe(elsewhere) == recipe
    assert "简短回答" in elsewhere.read_text(encoding="utf-8")


def test_a_recipe_does_not_change_after_loading(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.seed = 3  # type: ignore[misc]
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"model: [", "the recipe must be YAML, got: "),
        (b"- a\n- b\n", "the recipe must be a mapping of sections (model, data, ...), got ['a', 'b']"),
        (b"", "the recipe must be a mapping of sections (model, data, ...), got None"),
        (b"\xff\xfe\x00", "the recipe must be a readable UTF-8 file, got: "),
    ],
)
def test_what_is_no_recipe_is_told(recipe_file: Path, content: bytes, rule: str) -> None:
    recipe_file.write_bytes(content)
    (sentence,) = refusal(recipe_file)
    assert sentence.startswith(rule)
    assert "\n" not in sentence


def test_a_recipe_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == ["the recipe must be a file that exists, got nothing there"]


def test_files_may_have_weights(recipe_file: Path) -> None:
    files = "data.train=[a.json, {path: b/*.jsonl, weight: 0.5}]"
    loaded = load_recipe(recipe_file, [files]).data.train
    folder = recipe_file.parent
    assert [(file.path, file.weight) for file in loaded] == [(f"{folder}/a.json", 1), (f"{folder}/b/*.jsonl", 0.5)]
    (message,) = refusal(recipe_file, "data.train=[{path: a.json, wieght: 2}]")
    assert message.endswith("did you mean data.train.0.weight?")


def test_history_cannot_be_masked_and_trained(recipe_file: Path) -> None:
    (message,) = refusal(recipe_file, "data.mask_history=true", "data.train_on_prompt=true")
    assert message == "data.train_on_prompt must be false where data.mask_history is true, got True"
