"""Each trap of the linter, and no finding where there is none."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.tiny_tokenizers import CHATML, save_chatml_tokenizer, save_sentencepiece_model
from twintune.converters.lint import Finding, lint
from twintune.converters.rows import Row
from twintune.converters.templates import load_template
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError

SOUND = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Counts(NamedTuple):
    conversations: int
    not_closed: int


def check(folder: Path, template: str, *, config: dict[str, Any] | None = None, **others: Any) -> list[Finding]:
    """Lint a tokenizer's folder with a config.json; `generation` is its generation_config.json."""
    (folder / "config.json").write_text(json.dumps(SOUND | (config or {})))
    if "generation" in others:
        (folder / "generation_config.json").write_text(json.dumps(others.pop("generation")))
    tokenizer = load_tokenizer(folder, added_tokens=others.pop("added_tokens", ()))
    return lint(tokenizer, load_template(template, tokenizer), folder, **others)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_sentencepiece_model(tmp_path)


@pytest.fixture
def chatml(tmp_path: Path) -> Path:
    return save_chatml_tokenizer(tmp_path)


def the_one(findings: list[Finding]) -> tuple[str, str]:
    (finding,) = findings
    assert finding.remedy
    return finding.severity, finding.sentence


def row(*ids: int) -> Row:
    return Row(np.array(ids, np.int32), np.array(ids, np.int32))


def test_a_sound_recipe_has_no_findings(llama: Path) -> None:
    facts, rows = Counts(5, 2), [row(1, 5, 2)]
    assert check(llama, "vicuna_v1.1", generation={"eos_token_id": [2, 7]}, facts=facts, rows=rows) == []


def test_a_sound_chat_model_has_no_findings(chatml: Path) -> None:
    assert check(chatml, "tokenizer") == []


def test_a_model_folder_without_configs_is_no_trap(tiny_sentencepiece_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_sentencepiece_folder)
    assert lint(tokenizer, load_template("vicuna_v1.1", tokenizer), tiny_sentencepiece_folder) == []


@pytest.mark.parametrize(
    ("template", "severity", "sentence"),
    [
        ("raw", "error", "'raw' writes nothing after an answer: no model learns to stop"),
        ("baize", "error", r"'baize' closes answers with '\n' alone"),
        ("dolly_v2", "warning", "'dolly_v2' closes answers with '### End', which is no special token"),
        ("openchat_3.5", "error", "'openchat_3.5' closes answers with '<|end_of_turn|>', which is no special token"),
    ],
)
def test_answers_that_no_special_token_closes(llama: Path, template: str, severity: str, sentence: str) -> None:
    found, said = the_one(check(llama, template))
    assert (found, sentence in said) == (severity, True)


def test_marks_that_are_letters_to_the_tokenizer(llama: Path) -> None:
    closing, opening = check(llama, "qwen-7b-chat")
    assert "'<|im_end|>', which is no special token of this tokenizer but" in closing.sentence
    assert "'<|im_start|>', which is no token of this tokenizer but" in opening.sentence
    assert (closing.severity, opening.severity) == ("error", "warning")
    added = ["<|im_start|>", "<|im_end|>"]
    config = {"vocab_size": 402, "eos_token_id": [2, 401]}
    assert check(llama, "qwen-7b-chat", config=config, added_tokens=added) == []
    assert check(llama, "llama-2") == []  # [INST] was taught as letters


def test_bos_written_twice(llama: Path) -> None:
    own = "{{ bos_token }}" + CHATML.replace("<|im_end|>", "</s>").replace("<|im_start|>", "")
    assert check(llama, own) == []
    named = {"bos_token": "<|im_start|>"}
    with_bos = save_chatml_tokenizer(llama / "twice", "<|im_start|>" + CHATML, **named)
    assert the_one(check(with_bos, "tokenizer")) == (
        "error",
        "rows begin with two bos tokens (1): template 'tokenizer' writes both",
    )


def test_bos_missing(llama: Path) -> None:
    without = CHATML.replace("<|im_end|>", "</s>").replace("<|im_start|>", "")
    severity, sentence = the_one(check(llama, without))
    assert severity == "warning"
    assert "rows do not begin with bos (1), which the tokenizer puts before every text" in sentence


def test_a_chat_template_that_is_not_used(chatml: Path) -> None:
    severity, sentence = the_one(check(chatml, "A chat.\n" + CHATML))
    assert severity == "warning"
    assert sentence.startswith('the tokenizer has a chat template, and "the recipe\'s own text" writes other text')
    assert check(chatml, "chatml") == []


@pytest.mark.parametrize("generation", [{"eos_token_id": 3}, {"eos_token_id": [3, 4]}, {}])
def test_programs_that_would_not_stop(chatml: Path, generation: dict[str, Any]) -> None:
    told = generation.get("eos_token_id", 3)
    severity, sentence = the_one(check(chatml, "tokenizer", config={"eos_token_id": 3}, generation=generation))
    name = "generation_config.json" if generation else "config.json"
    assert severity == "error"
    assert sentence.startswith(f"{name} stops at eos_token_id {told if isinstance(told, list) else [told]}, not at the")
    assert "'<|im_end|>' (2): transformers and vLLM would write on" in sentence


def test_an_eos_that_the_template_does_not_write_is_a_warning(chatml: Path) -> None:
    severity, sentence = the_one(check(chatml, "tokenizer", config={"eos_token_id": None}))
    assert severity == "error"
    own = CHATML.replace("<|im_end|>", "<|endoftext|>")
    findings = check(chatml, own, config={"eos_token_id": 0, "pad_token_id": None})
    assert [finding.severity for finding in findings] == ["warning", "warning"]
    assert "not at eos, '<|im_end|>' (2)" in findings[1].sentence
    assert "not at the token that closes answers" in sentence


def test_pad_that_is_eos(llama: Path) -> None:
    for changed in ({"config": {"pad_token_id": 2}}, {"generation": {"eos_token_id": [2], "pad_token_id": 2}}):
        severity, sentence = the_one(check(llama, "vicuna_v1.1", **changed))
        assert severity == "warning"
        assert "config.json has 2 for both pad_token_id and eos_token_id" in sentence


@pytest.mark.parametrize(("key", "number"), [("pad_token_id", -1), ("pad_token_id", 400), ("bos_token_id", 401)])
def test_ids_that_the_model_has_not(chatml: Path, key: str, number: int) -> None:
    severity, sentence = the_one(check(chatml, "tokenizer", config={key: number}))
    assert (severity, sentence) == (
        "error",
        f"config.json says {key} {number}, which is not among the ids 0 to 399 of the model",
    )


def test_the_first_conversions_of_llama(llama: Path) -> None:
    belle = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    findings = check(llama, "vicuna_v1.1", config=belle)
    assert "config.json says bos 0, eos 1 and pad -1, as the first conversions of LLaMA did" in findings[0].sentence
    assert [finding.severity for finding in findings] == ["error", "error", "warning"]
    assert "config.json says bos_token_id 0, the tokenizer 1" in findings[2].sentence


def test_tokens_without_an_embedding(chatml: Path) -> None:
    vocab_size = load_tokenizer(chatml).vocab_size
    severity, sentence = the_one(check(chatml, "tokenizer", config={"vocab_size": vocab_size}, added_tokens=["<PAD>"]))
    assert severity == "error"
    assert sentence.endswith(f"ids and the model {vocab_size} embeddings: 1 of them have none, among them '<PAD>'")


def test_conversations_that_are_never_closed(llama: Path) -> None:
    severity, sentence = the_one(check(llama, "vicuna_v1.1", facts=Counts(3, 3)))
    assert severity == "error"
    assert sentence == "none of 3 conversations is trained to its closing: no model learns to stop"


def test_pad_and_unk_in_rows(llama: Path, tmp_path: Path) -> None:
    severity, sentence = the_one(check(llama, "vicuna_v1.1", rows=[row(1, 0, 5), row(0, 2)]))
    assert severity == "error"
    assert sentence.startswith("the pad token '<unk>' occurs 2 times in 2 rows")
    named = {"unk_token": "<|im_start|>"}
    chatml = save_chatml_tokenizer(tmp_path / "chatml", **named)
    severity, sentence = the_one(check(chatml, "tokenizer", rows=[row(1, 1, 5)]))
    assert (severity, sentence.split(":")[0]) == ("warning", "the unk token occurs 2 times in 1 rows")


def test_a_broken_config_is_told(llama: Path) -> None:
    for content in ("{", "[]"):
        (llama / "generation_config.json").write_text(content)
        with pytest.raises(UserError, match=r"generation_config\.json: must be a JSON object, got"):
            check(llama, "vicuna_v1.1")
