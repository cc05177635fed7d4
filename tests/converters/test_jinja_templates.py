"""Our jinja sandbox gives the bytes of transformers' apply_chat_template."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_tokenizers import CHATML, save_chatml_tokenizer
from twintune.converters.conversation import Conversation, Message
from twintune.converters.templates import Template, load_template
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError

# In the styles of published models, in words of our own.
STYLES = {
    "chatml": CHATML,
    "llama-2": """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}""",
    "llama-3": """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "qwen2": """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "mistral": """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "generation": """\
{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}<|im_start|>{{ message.role }}{{ {'é': [1, '<']} | tojson }}
{{ message.content }}<|im_end|>
{% endif %}{% if loop.index > 99 %}{% break %}{% endif %}{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
}
TALK = (
    Message("human", "1+1? <|im_end|>"),
    Message("assistant", "由题目可知：2"),
    Message("human", "\r\n{{ and }} {% if %} 2+2?"),
    Message("assistant", " <4> "),
)
SYSTEM = Message("system", "Own {words}.")
ROLES = {"system": "system", "human": "user", "assistant": "assistant"}


def transformers_text(folder: Path, messages: tuple[Message, ...], **options: Any) -> str:
    from transformers import AutoTokenizer

    turns = [{"role": ROLES[message.role], "content": message.text} for message in messages]
    return str(AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, tokenize=False, **options))


@pytest.fixture(scope="module", params=STYLES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / request.param
    named = {"bos_token": "<|im_start|>"}
    return save_chatml_tokenizer(path, STYLES[request.param], **named)


@pytest.mark.parametrize("messages", [TALK[:2], TALK, (SYSTEM, *TALK[:2]), (SYSTEM, *TALK)])
def test_the_bytes_are_those_of_transformers(folder: Path, messages: tuple[Message, ...]) -> None:
    template = load_template("tokenizer", load_tokenizer(folder))
    if folder.name == "mistral" and messages[0] is SYSTEM:
        with pytest.raises(UserError, match="got its refusal: Only user and assistant roles"):
            template.segments(Conversation("x", messages))
        return
    segments = template.segments(Conversation("x", messages))
    assert "".join(segment.text for segment in segments) == transformers_text(folder, messages)
    prompt = template.prompt_text(messages[:-1])
    assert prompt == transformers_text(folder, messages[:-1], add_generation_prompt=True)
    answers = [segment.text.strip() for segment in segments if segment.trained and segment.content]
    assert answers == [message.text.strip() for message in messages if message.role == "assistant"]
    assert template.stop_token_id == 2


def test_one_run_writes_one_date(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}" + CHATML
    template = load_template("tokenizer", load_tokenizer(save_chatml_tokenizer(tmp_path, dated)))
    copy: Template = pickle.loads(pickle.dumps(template))  # noqa: S301  our own bytes
    assert copy.prompt_text(TALK[:1]) == template.prompt_text(TALK[:1])
    assert transformers_text(tmp_path, TALK[:1])[:20] >= template.prompt_text(TALK[:1])[:20]


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    escaping = CHATML + "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match="got its refusal: access to attribute '__class__'"):
        load_template("tokenizer", load_tokenizer(save_chatml_tokenizer(tmp_path, escaping)))


def test_chatml_by_name_and_inline(tmp_path: Path, tiny_sentencepiece_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_sentencepiece_folder, added_tokens=["<|im_start|>", "<|im_end|>"])
    chatml = load_template("chatml", tokenizer)
    inline = load_template("{{ bos_token }}" + CHATML, tokenizer)
    expected = transformers_text(save_chatml_tokenizer(tmp_path), TALK)
    for template, text in ((chatml, expected), (inline, f"<s>{expected}")):
        segments = template.segments(Conversation("x", TALK))
        assert "".join(segment.text for segment in segments) == text
        assert template.stop_token_id == tokenizer.special_tokens["<|im_end|>"]
    assert (chatml.add_special_tokens, inline.add_special_tokens) == (True, False)


def test_an_inline_template_that_is_no_jinja_is_told(tiny_tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.template: .the recipe's own text. must accept the messages"):
        load_template("{% for message in messages %}", load_tokenizer(tiny_tokenizer_folder))
