"""The linter's view of a model folder: what config.json and generation_config.json say of special tokens."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twintune.converters.finding import Finding
from twintune.converters.templates import Template
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
FIRST_CONVERSION = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}


def lint_config(tokenizer: Tokenizer, template: Template, folder: Path) -> Iterator[Finding]:
    """Traps between the tokenizer, the template and a model folder's two config files; neither must be there.

    Raises:
        UserError: for a file that is no JSON object.
    """
    configs = {name: _read(folder / name) for name in (CONFIG, GENERATION_CONFIG)}
    rows = configs[CONFIG].get("vocab_size")
    for name, config in configs.items():
        yield from _impossible_ids(name, config, rows)
        yield from _pad_is_eos(name, config)
        yield from _other_bos(name, config, tokenizer)
    yield from _never_stops(configs, tokenizer, template)
    yield from _without_embedding(tokenizer, rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: must be a JSON object, got: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    """eos_token_id may be a list; a key may be missing or null."""
    value = config.get(key)
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _impossible_ids(name: str, config: Mapping[str, Any], vocab_size: int | None) -> Iterator[Finding]:
    if {key: config.get(key) for key in KEYS} == FIRST_CONVERSION:
        yield Finding(
            "error",
            f"{name} says bos 0, eos 1 and pad -1, as the first conversions of LLaMA did (BELLE's among them): "
            "no tokenizer has its tokens there",
            f"set bos_token_id 1 and eos_token_id 2 in {name} and remove pad_token_id, or take a newer conversion",
        )
        return
    for key in KEYS:
        for number in _ids(config, key):
            if number < 0 or (vocab_size is not None and number >= vocab_size):
                yield Finding(
                    "error",
                    f"{name} says {key} {number}, which is not among the ids 0 to {(vocab_size or 0) - 1} of the model",
                    f"set {key} in {name} to an id of the tokenizer, or remove it",
                )


def _pad_is_eos(name: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    for number in set(_ids(config, "pad_token_id")) & set(_ids(config, "eos_token_id")):
        yield Finding(
            "warning",
            f"{name} has {number} for both pad_token_id and eos_token_id: a program that hides pad hides the "
            "closing of every answer, and a model trained so never stops",
            f"twintune pads with another token; set another pad_token_id in {name} for other programs",
        )


def _other_bos(name: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> Iterator[Finding]:
    told = _ids(config, "bos_token_id")
    if told and tokenizer.bos_token_id not in (None, *told):
        yield Finding(
            "warning",
            f"{name} says bos_token_id {told[0]}, the tokenizer {tokenizer.bos_token_id}",
            f"set bos_token_id in {name} to {tokenizer.bos_token_id}",
        )


def _never_stops(
    configs: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer, template: Template
) -> Iterator[Finding]:
    """As transformers and vLLM: generation_config.json has the word, config.json where it says nothing."""
    told = {name: _ids(config, "eos_token_id") for name, config in configs.items()}
    name = GENERATION_CONFIG if told[GENERATION_CONFIG] else CONFIG
    if not any(configs.values()):
        return
    for task, number in (("the token that closes answers", template.stop_token_id), ("eos", tokenizer.eos_token_id)):
        if number is not None and number not in told[name]:
            serious = task != "eos" or template.stop_token_id is None
            text = next(text for text, own in tokenizer.special_tokens.items() if own == number)
            yield Finding(
                "error" if serious else "warning",
                f"{name} stops at eos_token_id {told[name]}, not at {task}, {text!r} ({number}): transformers and vLLM "
                "would write on",
                f"add {number} to eos_token_id in {GENERATION_CONFIG}",
            )
            return


def _without_embedding(tokenizer: Tokenizer, vocab_size: int | None) -> Iterator[Finding]:
    if vocab_size is None or tokenizer.vocab_size <= vocab_size:
        return
    beyond = [text for text, number in tokenizer.special_tokens.items() if number >= vocab_size]
    named = f", among them {', '.join(map(repr, beyond[:5]))}" if beyond else ""
    yield Finding(
        "error",
        f"the tokenizer has {tokenizer.vocab_size} ids and the model {vocab_size} embeddings: "
        f"{tokenizer.vocab_size - vocab_size} of them have none{named}",
        "resize the model's embeddings, or add no tokens beyond them in model.added_tokens",
    )
