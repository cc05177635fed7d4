"""What a server reads beside merged weights, so that it asks and stops as `twintune generate` does.

Servers such as vLLM render a conversation by the folder's chat template and stop at the tokens of
generation_config.json: those of the base, where the adapter was tuned with another template.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twintune.artifacts import new_file, write_json
from twintune.chat import encode_question, stop_token_ids
from twintune.converters.conversation import Message
from twintune.converters.jinja_templates import JinjaRenderer, is_jinja
from twintune.converters.templates import OWN_TEMPLATE, Template, load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError
from twintune.recipe import Recipe

CHAT_TEMPLATE = "chat_template.jinja"  # transformers prefers it to the one in tokenizer_config.json
GENERATION_CONFIG = "generation_config.json"
SYSTEM, HUMAN, ANSWER, AGAIN = ("\ue000", "\ue001", "\ue002", "\ue003")  # no template writes them
TRIALS = (
    (Message("human", "What is 3 + 4?"),),
    (Message("system", "Be brief. 请简短。"), Message("human", "小明有 3 颗糖")),
    (Message("human", "1 + 1?"), Message("assistant", "2."), Message("human", "And {{ 1 }} + 2?")),
    (
        Message("system", "Count."),
        Message("human", "a\nb"),
        Message("assistant", 'It is "2".'),
        Message("human", "?"),
        Message("assistant", "Yes"),
        Message("human", "好"),
    ),
)


def write_serving_files(folder: Path, recipe: Recipe | None, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Write chat_template.jinja and the eos tokens of generation_config.json as the adapter was tuned.

    Args:
        folder: of the merged model, with the base's files in it.
        recipe: of the adapter; without one the base's chat template stays.
        tokenizer: of the model.

    Returns:
        what the user must know to serve the model.

    Raises:
        UserError: for a template that load_template refuses.
    """
    if recipe is None:
        _write_eos(folder, stop_token_ids(tokenizer, None))
        return ()
    template = load_template(recipe.data.template, tokenizer, recipe.data.system)
    _write_eos(folder, stop_token_ids(tokenizer, template))
    notes = []
    if template.stop_text is not None:
        notes.append(f"a server must be told the stop string {json.dumps(template.stop_text)} with each request")
    name, own_system = recipe.data.template, recipe.data.system is not None
    if name == OWN_TEMPLATE and not own_system:
        return tuple(notes)
    text = name if is_jinja(name) and not own_system else chat_template(template, tokenizer)
    if text is None:
        notes.append(
            f"no {CHAT_TEMPLATE} could be written that renders {template.name} token for token: give a server whole "
            "prompts (/v1/completions), not messages"
        )
    else:
        with new_file(folder / CHAT_TEMPLATE) as aside:
            aside.write_text(text, encoding="utf-8")
    return tuple(notes)


def _write_eos(folder: Path, stops: Sequence[int]) -> None:
    path = folder / GENERATION_CONFIG
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    eos = written.get("eos_token_id")
    known: set[int] = {eos} if isinstance(eos, int) else set(eos or ())
    if not known.issuperset(stops):
        write_json(path, written | {"eos_token_id": sorted(known.union(stops))})


def chat_template(template: Template, tokenizer: Tokenizer) -> str | None:
    """A jinja chat template that renders conversations as `template` does, system prompt and bos included.

    Returns:
        None if there is none: some templates take no system prompt, or write later turns in another way.
    """
    try:
        text = _jinja(template, tokenizer)
        renderer = JinjaRenderer(CHAT_TEMPLATE, text, tokenizer.named_tokens)
        same = all(
            tokenizer.encode(renderer.render(trial, True), False).ids.tolist()
            == encode_question(trial, tokenizer, template, split_special_tokens=False)
            for trial in TRIALS
        )
    except (UserError, ValueError):  # a refused trial, or words that do not stand where they stood before
        return None
    return text if same else None


def _jinja(template: Template, tokenizer: Tokenizer) -> str:
    """The words of the template between messages, put into jinja."""
    turns = [Message("human", HUMAN), Message("assistant", ANSWER), Message("human", AGAIN)]
    head, asked, answered, tail = _between(template.prompt_text(turns), HUMAN, ANSWER, AGAIN)
    system_head, after_system, _ = _between(
        template.prompt_text([Message("system", SYSTEM), Message("human", HUMAN)]), SYSTEM, HUMAN
    )
    adds_bos = template.add_special_tokens and tokenizer.encode("", True).ids.tolist() == [tokenizer.bos_token_id]
    return "".join(
        (
            "{{- bos_token -}}" if adds_bos else "",
            "{%- if messages[0]['role'] == 'system' -%}",
            f"{_words(system_head)}{{{{- messages[0]['content'] -}}}}{_words(after_system)}",
            "{%- set turns = messages[1:] -%}{%- else -%}",
            f"{_words(head)}{{%- set turns = messages -%}}{{%- endif -%}}",
            "{%- for turn in turns -%}",
            f"{{%- if turn['role'] == 'assistant' -%}}{_words(asked)}",
            f"{{%- elif not loop.first -%}}{_words(answered)}{{%- endif -%}}",
            "{{- turn['content'] -}}{%- endfor -%}",
            "{%- if turns[-1]['role'] == 'assistant' -%}",
            _words(template.closing),
            f"{{%- elif add_generation_prompt -%}}{_words(tail)}{{%- endif -%}}",
        )
    )


def _between(text: str, *found: str) -> list[str]:
    """What stands before, between and after some marks.

    Raises:
        ValueError: if one is not there.
    """
    pieces = []
    for mark in found:
        place = text.index(mark)
        pieces.append(text[:place])
        text = text[place + len(mark) :]
    return [*pieces, text]


def _words(text: str) -> str:
    return f"{{{{- {json.dumps(text)} -}}}}" if text else ""
