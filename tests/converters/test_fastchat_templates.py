"""Every template of FastChat gives FastChat's own bytes, or says why it cannot be trained with."""

from pathlib import Path

import pytest
from fastchat.conversation import conv_templates, get_conv_template

from twintune.converters.conversation import Conversation, Message
from twintune.converters.templates import Segment, load_template
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError

SERVICES = {"chatgpt", "pplxai", "bard", "gemini", "steerlm"}
REWRITING = {"yuan2"}  # it closes a question otherwise in a prompt than before an answer
FIXED_SYSTEM = {"deepseek-coder", "yuan"}  # no place for another system prompt
NEVER_CLOSING = {"raw", "chatglm3", "stablelm", "metamath", "baichuan-chat", "baichuan2-chat", "metharme"}
TALK = (
    Message("human", "1+1?"),
    Message("assistant", "\n由题目可知：2"),
    Message("human", "{and} 2+2? </s>"),
    Message("assistant", " 4 "),
)
SYSTEM = Message("system", "Own {words}.")


def fastchat_text(name: str, messages: tuple[Message, ...], answer_next: bool = False) -> str:
    chat = get_conv_template(name)
    if messages[0].role == "system":
        chat.set_system_message(messages[0].text)
        messages = messages[1:]
    for message in messages:
        chat.append_message(chat.roles[message.role == "assistant"], message.text)
    if answer_next:
        chat.append_message(chat.roles[1], None)
    return str(chat.get_prompt())


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("folder", ["tiny_sentencepiece_folder", "tiny_tokenizer_folder"])
@pytest.mark.parametrize("name", [name for name in conv_templates if name not in SERVICES | REWRITING])
def test_the_bytes_are_fastchats(request: pytest.FixtureRequest, folder: str, name: str) -> None:
    template = load_template(name, load_tokenizer(request.getfixturevalue(folder)))
    with_system = [] if name in FIXED_SYSTEM else [(SYSTEM, *TALK[:2]), (SYSTEM, *TALK)]
    for messages in (TALK[:2], TALK, *with_system):
        segments = template.segments(Conversation("x", messages))
        assert joined(segments) == fastchat_text(name, messages)
        assert [segment.text for segment in segments if segment.content][-2:] == [
            message.text for message in messages[-2:]
        ]
        prompt = template.prompt_text(messages[:-1])
        assert prompt == fastchat_text(name, messages[:-1], answer_next=True)
        assert joined(segments).startswith(prompt)
    assert bool(template.closing) == (name not in NEVER_CLOSING)
    assert bool(template.closing) == (template.stop_text is not None or template.stop_token_id is not None)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_refused(tiny_sentencepiece_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.template: '{name}' must write a conversation as text"):
        load_template(name, load_tokenizer(tiny_sentencepiece_folder))


@pytest.mark.parametrize("name", sorted(REWRITING))
def test_a_template_that_rewrites_the_prompt_is_refused(tiny_sentencepiece_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.template: '{name}' must only append to earlier turns"):
        load_template(name, load_tokenizer(tiny_sentencepiece_folder))


@pytest.mark.parametrize("name", sorted(FIXED_SYSTEM))
def test_a_template_without_a_place_for_the_system_prompt_is_refused(
    tiny_sentencepiece_folder: Path, name: str
) -> None:
    template = load_template(name, load_tokenizer(tiny_sentencepiece_folder))
    with pytest.raises(UserError, match="got the system message changed or left out"):
        template.segments(Conversation("x", (SYSTEM, *TALK)))


def test_a_template_that_changes_some_texts_refuses_only_those(tiny_sentencepiece_folder: Path) -> None:
    template = load_template("rwkv", load_tokenizer(tiny_sentencepiece_folder))
    template.segments(Conversation("x", TALK))
    changed = Conversation("x", (TALK[0], Message("assistant", "a\n\nb")))
    with pytest.raises(UserError, match="must keep each message as it is, got the assistant message changed"):
        template.segments(changed)
