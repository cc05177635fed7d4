"""Chat templates in jinja: the tokenizer's own, ChatML, or one written in the recipe.

They are rendered in one sandbox, byte for byte as transformers' apply_chat_template does, without importing it.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from twintune.converters.conversation import Message
from twintune.converters.skeletons import Renderer

CHAT_ROLES = {"system": "system", "human": "user", "assistant": "assistant"}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class JinjaRenderer(Renderer):
    """A chat template as jinja text.

    Args:
        name: what data.template says.
        text: the template.
        named_tokens: what it may write by name, such as bos_token.
        add_special_tokens: whether the tokenizer adds its own bos; a template usually writes it itself.
    """

    def __init__(self, name: str, text: str, named_tokens: Mapping[str, str], add_special_tokens: bool = False) -> None:
        self.name = name
        self.add_special_tokens = add_special_tokens
        self._text = text
        self._named_tokens = dict(named_tokens)
        self._loaded_at = datetime.now()  # one date for all rows, though midnight may pass while they are made

    def render(self, messages: Sequence[Message], answer_next: bool) -> str:
        """See Renderer."""
        turns = [{"role": CHAT_ROLES[message.role], "content": message.text} for message in messages]
        try:
            return _compile(self._text).render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=answer_next,
                strftime_now=self._loaded_at.strftime,
                **self._named_tokens,
            )
        except (TemplateError, TypeError) as error:
            raise self.unfit(f"must accept the messages, got its refusal: {error}") from None


def is_jinja(text: str) -> bool:
    """Whether a recipe's data.template is a template itself, and no name."""
    return "{{" in text or "{%" in text


class _Generation(Extension):
    """Lets `{% generation %}` pass, with which some templates mark answers for transformers."""

    tags = {"generation"}  # noqa: RUF012  jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


@lru_cache
def _compile(text: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(text)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja's own filter escapes for HTML


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
