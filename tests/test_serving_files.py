"""A merged folder holds what a server such as vLLM reads, and it asks and stops as twintune does."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.smallest_recipe import write_smallest_recipe
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer, save_sentencepiece_model
from twintune.backends.job import Lora
from twintune.chat import encode_question, stop_token_ids
from twintune.converters.adapter import make_initial_adapter, write_adapter
from twintune.converters.conversation import Message
from twintune.converters.jinja_templates import JinjaRenderer
from twintune.converters.templates import load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.converters.tokens import load_tokenizer
from twintune.models import read_model_config
from twintune.recipe import Recipe, load_recipe
from twintune.serving_files import CHAT_TEMPLATE, GENERATION_CONFIG, chat_template, write_serving_files

QUESTIONS = (
    [Message("human", "题目：小华有 3 颗糖，一共有几颗？")],
    [Message("system", "Answer briefly."), Message("human", "3 + 4?\n")],
    [Message("human", "1 + 1?"), Message("assistant", "2"), Message("human", "And then?")],
)
ROLES = {"human": "user", "assistant": "assistant", "system": "system"}


@pytest.fixture(scope="module", params=["sentencepiece", "chatml"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One adds a bos, the other has none."""
    save = save_sentencepiece_model if request.param == "sentencepiece" else save_chatml_tokenizer
    return load_tokenizer(save(tmp_path_factory.mktemp(request.param)))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write_smallest_recipe(tmp_path / "recipe", weights=False))


@pytest.mark.parametrize("system", [None, 'Say "so".\n'])
@pytest.mark.parametrize(
    "name", ["vicuna_v1.1", "llama-2", "qwen-7b-chat", "alpaca", "mistral", "chatml", "tokenizer", "zero_shot"]
)
def test_a_written_chat_template_renders_the_same_tokens(tokenizer: Tokenizer, name: str, system: str | None) -> None:
    if name == "tokenizer" and tokenizer.chat_template is None:
        pytest.skip("this tokenizer has no chat template of its own")
    template = load_template(name, tokenizer, system)
    text = chat_template(template, tokenizer)
    assert text is not None
    renderer = JinjaRenderer(name, text, tokenizer.named_tokens)
    for messages in QUESTIONS:
        served = tokenizer.encode(renderer.render(messages, True), False).ids.tolist()
        assert served == encode_question(messages, tokenizer, template, split_special_tokens=True)


@pytest.mark.parametrize("name", ["chatglm", "yuan"])  # rounds are numbered; no system prompt is taken
def test_what_cannot_be_written_in_jinja_is_told(tmp_path: Path, recipe: Recipe, name: str) -> None:
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path / "tokenizer"))
    told = recipe.model_copy(update={"data": recipe.data.model_copy(update={"template": name})})
    before = (tmp_path / "tokenizer" / CHAT_TEMPLATE).read_bytes()
    notes = write_serving_files(tmp_path / "tokenizer", told, tokenizer)
    assert any("give a server whole prompts" in note for note in notes)
    assert (tmp_path / "tokenizer" / CHAT_TEMPLATE).read_bytes() == before


def test_the_stop_string_of_a_template_is_told(tmp_path: Path, recipe: Recipe) -> None:
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path))
    told = recipe.model_copy(update={"data": recipe.data.model_copy(update={"template": "zero_shot"})})
    assert load_template("zero_shot", tokenizer).stop_text == "\n###"
    assert write_serving_files(tmp_path, told, tokenizer) == (
        r'a server must be told the stop string "\n###" with each request',
    )


def test_eos_tokens_are_added_and_what_stands_there_stays(tmp_path: Path, recipe: Recipe) -> None:
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path))
    ends = stop_token_ids(tokenizer, load_template(recipe.data.template, tokenizer))
    path = tmp_path / GENERATION_CONFIG
    for before, kept in (
        ({}, set()),
        ({"eos_token_id": 390, "top_k": 20}, {390}),
        ({"eos_token_id": [391, 390]}, {390, 391}),
    ):
        path.write_text(json.dumps(before), encoding="utf-8")
        write_serving_files(tmp_path, recipe, tokenizer)
        written = json.loads(path.read_text(encoding="utf-8"))
        assert written == before | {"eos_token_id": sorted({*ends, *kept})}


def test_a_merged_folder_is_complete_and_transformers_reads_it_as_vllm_does(tmp_path: Path, recipe: Recipe) -> None:
    pytest.importorskip("torch", reason="the merge is checked on a backend")
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from twintune.merging import merge_adapter

    recipe = load_recipe(tmp_path / "recipe" / "recipe.yaml", ["data.template=qwen-7b-chat"])
    base = save_tiny_model(tmp_path / "base", "qwen2", vocab_size=400, max_position_embeddings=512)
    tokens = {"eos_token": "<|endoftext|>", "pad_token": "<|im_start|>"}  # <|im_end|> closes a turn, and is no eos
    save_chatml_tokenizer(base, chat_template=None, **tokens)
    lora = Lora(4, 8, 0.0, ("q_proj", "v_proj"))
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.normal(0, 0.1, array.shape).astype(np.float32)
        for name, array in make_initial_adapter(read_model_config(base), lora, seed=0).items()
    }
    write_adapter(tmp_path / "adapter", tensors, lora, str(base))
    recipe.save(tmp_path / "adapter" / "recipe.yaml")
    merged = tmp_path / "merged"
    merge_adapter(tmp_path / "adapter", merged, model=str(base), backend="cuda", device="cpu")

    assert {path.name for path in merged.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    }
    assert AutoConfig.from_pretrained(merged).architectures == ["Qwen2ForCausalLM"]
    tokenizer, served = load_tokenizer(base), AutoTokenizer.from_pretrained(merged)
    template = load_template(recipe.data.template, tokenizer)
    assert GenerationConfig.from_pretrained(base).eos_token_id == 2
    assert GenerationConfig.from_pretrained(merged).eos_token_id == stop_token_ids(tokenizer, template) == [0, 2]
    for messages in QUESTIONS:
        turns = [{"role": ROLES[message.role], "content": message.text} for message in messages]
        text = served.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = served(text, add_special_tokens=False)["input_ids"]
        assert ids == encode_question(messages, tokenizer, template, split_special_tokens=True)
