"""A recipe with added tokens, resized embeddings and whole modules: trained, answered with and merged as one model."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda extra is not installed: it trains the recipe")

from tests.smallest_recipe import RECORDS, write_json
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.chat import load_chat
from twintune.converters.adapter import read_adapter
from twintune.errors import UserError
from twintune.exporting import adapter_to_mindformers
from twintune.merging import merge_adapter
from twintune.models import read_model_config
from twintune.plan_view import plan_lines
from twintune.recipe import Recipe, load_recipe
from twintune.sampling import Sampling
from twintune.training import run_training
from twintune.training_plan import decide

pytestmark = [
    # peft 0.21 asks transformers 5 for gradient checkpointing by its old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft 0.18 takes every architecture that can be tied for tied
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
RECIPE = r"""
model: {name_or_path: ./base, added_tokens: [<|turn|>, <|pad|>], pad_token: <|pad|>, pad_to_multiple_of: 64}
data:
  train: ./data.json
  template: "{% for message in messages %}<|turn|>{{ message['content'] }}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}<|turn|>{% endif %}"
lora: {r: 2, lora_alpha: 4, target_modules: [q_proj], lora_dropout: 0, modules_to_save: [lm_head, embed_tokens]}
train: {max_steps: 2, learning_rate: 1.0e-2, lr_scheduler_type: constant}
backend: {name: cuda, device: cpu}
"""
ROWS = 448  # 400 tokens of the tokenizer, 2 added, rounded up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resizing")
    save_chatml_tokenizer(save_tiny_model(folder / "base", "qwen2", vocab_size=400, tie_word_embeddings=False))
    write_json(folder / "data.json", RECORDS)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINTUNE_CACHE", str(folder / "cache"))


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(folder / "recipe.yaml", overrides)


@pytest.fixture
def adapter(folder: Path) -> Path:
    """Trained once, with the recipe beside it."""
    output = folder / "run"
    if not output.is_dir():
        run_training(decide(recipe_of(folder), output))
    return output / "adapter"


def test_what_is_trained_is_counted(folder: Path) -> None:
    run = decide(recipe_of(folder), folder / "other")
    assert run.config["vocab_size"] == ROWS
    # r * (in + out) of q_proj in two layers, embedding and head
    assert run.trainable_parameters == 2 * 2 * (64 + 64) + 2 * ROWS * 64
    assert run.prepared.summary.pad_token_id == 401
    lines = dict(plan_lines(run))
    assert lines["trainable parameters"].endswith("(LoRA r 2, lm_head whole, embed_tokens whole)")


def test_the_adapter_answers_on_the_base_that_it_names(folder: Path, adapter: Path) -> None:
    chat = load_chat(str(folder / "base"), adapter, backend="cuda", device="cpu")
    ids = chat.prompt_ids("小华有 3 颗糖？")
    assert ids.count(400) == 2, "an added token is one token"
    (logits,) = chat.generator.model.logits([ids])
    assert logits.shape == (len(ids), ROWS)
    assert chat.answer(["小华有 3 颗糖？"], Sampling(max_new_tokens=3))
    _, tensors = read_adapter(adapter)
    _, initial = read_adapter(adapter.parent / "initial_adapter")
    moved = np.abs(
        tensors["base_model.model.model.embed_tokens.weight"] - initial["base_model.model.model.embed_tokens.weight"]
    ).max(axis=1)
    assert moved[400] > 1e-3
    assert moved[402:].max() == 0


def test_merge_and_export_take_the_resized_base(folder: Path, adapter: Path, tmp_path: Path) -> None:
    done = merge_adapter(adapter, tmp_path / "merged", backend="cuda", device="cpu")
    assert done.notes == (), "the merged model's tokenizer has the tokens"
    assert read_model_config(tmp_path / "merged")["vocab_size"] == ROWS
    chat = load_chat(str(tmp_path / "merged"), template="none", backend="cuda", device="cpu")
    assert chat.tokenizer.special_tokens["<|turn|>"] == 400
    export, _ = adapter_to_mindformers(adapter, tmp_path / "export", "ckpt")
    assert export.matrices == 2 * 2 + 2
    assert f"-{ROWS}-" in json.loads((tmp_path / "export" / "adapter.json").read_text())["base_model_name_or_path"]


def test_tokens_without_rows_are_told_with_the_key_that_gives_them(folder: Path) -> None:
    with pytest.raises(UserError, match=r"ids must be below vocab_size 400, got 40[01]; set model\.pad_to_multiple_of"):
        decide(recipe_of(folder, "model.pad_to_multiple_of=null"), folder / "other")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.pad_to_multiple_of=0", "model.pad_to_multiple_of must be greater than or equal to 1, got 0"),
        ("model.added_tokens=['']", "model.added_tokens must be texts that are not empty"),
        ("lora.modules_to_save=[score]", r"lora\.modules_to_save\.0 must be 'embed_tokens' or 'lm_head', got 'score'"),
    ],
)
def test_bad_values_are_told(folder: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        decide(recipe_of(folder, override), folder / "other")


def test_a_tied_model_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    tied = save_chatml_tokenizer(save_tiny_model(tmp_path / "tied", "qwen2", vocab_size=400))
    with pytest.raises(UserError, match=r"lora\.modules_to_save must be empty for a model whose head is its embedding"):
        decide(recipe_of(folder, f"model.name_or_path={tied}"), folder / "other")
