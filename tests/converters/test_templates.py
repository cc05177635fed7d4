from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from fastchat.conversation import conv_templates, get_conv_template

from tests.tiny_tokenizers import CHATML, save_chatml_tokenizer
from twintune.converters.conversation import Conversation, Message, NothingTrained
from twintune.converters.records import to_conversations
from twintune.converters.templates import Segment, load_template
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError

TALK = Conversation(
    "talk",
    (
        Message("human", "1+1?"),
        Message("assistant", "\n由题目可知：2"),
        Message("human", "{and} 2+2?"),
        Message("assistant", " 4 "),
    ),
)


def trained(segments: list[Segment]) -> list[str]:
    """The stretches that are trained, neighbours as one."""
    groups = groupby(segments, lambda segment: segment.trained)
    return ["".join(segment.text for segment in group) for learned, group in groups if learned]


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def test_vicuna_trains_answers_and_their_closing(tiny_sentencepiece_folder: Path) -> None:
    template = load_template("vicuna_v1.1", load_tokenizer(tiny_sentencepiece_folder))
    segments = template.segments(TALK)
    assert trained(segments) == ["\n由题目可知：2</s>", " 4 </s>"]
    assert segments[-5:] == [
        Segment("USER: ", False),
        Segment("{and} 2+2?", False, content=True),
        Segment(" ASSISTANT: ", False),
        Segment(" 4 ", True, content=True),
        Segment("</s>", True),
    ]
    assert template.add_special_tokens
    assert template.stop_token_id == 2


def test_segments_join_to_fastchats_own_prompt(tiny_sentencepiece_folder: Path, shared_data: Path) -> None:
    template = load_template("vicuna_v1.1", load_tokenizer(tiny_sentencepiece_folder))
    for conversation in to_conversations(shared_data / "fastchat" / "dummy_conversation.json"):
        chat = get_conv_template("vicuna_v1.1")
        for message in conversation.messages:
            chat.append_message(chat.roles[message.role == "assistant"], message.text)
        segments = template.segments(conversation)
        assert joined(segments) == chat.get_prompt()
        answers = [message.text for message in conversation.messages if message.role == "assistant"]
        assert trained(segments) == [f"{answer}</s>" for answer in answers]


def test_segments_join_to_the_chat_templates_own_text(tiny_tokenizer_folder: Path, shared_data: Path) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    template = load_template("tokenizer", load_tokenizer(tiny_tokenizer_folder))
    for conversation in to_conversations(shared_data / "fastchat" / "dummy_conversation.json"):
        turns = [
            {"role": "user" if message.role == "human" else "assistant", "content": message.text}
            for message in conversation.messages
        ]
        assert joined(template.segments(conversation)) == own.apply_chat_template(turns, tokenize=False)


def test_every_fastchat_template_is_exact_or_refused(
    tiny_sentencepiece_folder: Path, tiny_tokenizer_folder: Path
) -> None:
    used = set()
    for folder in (tiny_sentencepiece_folder, tiny_tokenizer_folder):
        tokenizer = load_tokenizer(folder)
        for name in conv_templates:
            try:
                segments = load_template(name, tokenizer).segments(TALK)
            except UserError:
                continue
            used.add(name)
            chat = get_conv_template(name)
            for message in TALK.messages:
                chat.append_message(chat.roles[message.role == "assistant"], message.text)
            assert joined(segments) == chat.get_prompt()
            assert [text[: len(" 4 ")] for text in trained(segments)[1:]] == [" 4 "]
    assert {"vicuna_v1.1", "llama-2", "mistral", "qwen-7b-chat", "phoenix"} <= used


def test_chatml_trains_through_the_end_mark(tiny_tokenizer_folder: Path) -> None:
    template = load_template("tokenizer", load_tokenizer(tiny_tokenizer_folder))
    assert trained(template.segments(TALK)) == ["\n由题目可知：2<|im_end|>", " 4 <|im_end|>"]
    assert not template.add_special_tokens
    assert template.stop_token_id == 2


def test_which_turns_are_trained(tiny_tokenizer_folder: Path) -> None:
    template = load_template("tokenizer", load_tokenizer(tiny_tokenizer_folder))
    assert trained(template.segments(TALK, mask_history=True)) == [" 4 <|im_end|>"]
    assert trained(template.segments(TALK, train_on_prompt=True)) == [joined(template.segments(TALK))]
    human, answer, *rest = TALK.messages
    own = Conversation("own", (replace(human, trained=True), replace(answer, trained=False), *rest))
    assert trained(template.segments(own)) == ["1+1?", " 4 <|im_end|>"]
    assert trained(template.segments(own, mask_history=True)) == ["1+1?", " 4 <|im_end|>"]
    untrained = [segment.text for segment in template.segments(own, train_on_prompt=True) if not segment.trained]
    assert untrained == ["\n由题目可知：2", "<|im_end|>"]


def test_a_conversation_that_trains_nothing_is_refused(tiny_tokenizer_folder: Path) -> None:
    template = load_template("tokenizer", load_tokenizer(tiny_tokenizer_folder))
    silent = Conversation("x", tuple(replace(message, trained=False) for message in TALK.messages))
    with pytest.raises(NothingTrained, match="every answer's own weight says no"):
        template.segments(silent)
    with pytest.raises(NothingTrained, match="there is no answer"):
        template.segments(Conversation("x", TALK.messages[:1]))
    with pytest.raises(UserError, match=r"data\.mask_history must be false where data\.train_on_prompt is true"):
        template.segments(TALK, mask_history=True, train_on_prompt=True)


def test_prompt_is_what_was_read_in_training(tiny_sentencepiece_folder: Path, tiny_tokenizer_folder: Path) -> None:
    for folder, name in ((tiny_sentencepiece_folder, "vicuna_v1.1"), (tiny_tokenizer_folder, "tokenizer")):
        template = load_template(name, load_tokenizer(folder))
        segments = template.segments(Conversation("x", TALK.messages[:2]))
        read = joined([segment for segment in segments[:-1] if not segment.trained])
        assert template.prompt_text(TALK.messages[:1]) == read.rstrip(" ")


def test_system_prompt_is_replaced_unless_a_record_brings_its_own(
    tiny_sentencepiece_folder: Path, tiny_tokenizer_folder: Path
) -> None:
    own = Conversation("own", (Message("system", "Own {words}."), *TALK.messages))
    for folder, name in ((tiny_sentencepiece_folder, "vicuna_v1.1"), (tiny_tokenizer_folder, "tokenizer")):
        template = load_template(name, load_tokenizer(folder), system="Be {brief}.")
        replaced = joined(template.segments(TALK))
        assert "Be {brief}." in replaced
        assert "A chat between" not in replaced
        text = joined(template.segments(own))
        assert "Own {words}." in text
        assert "Be {brief}." not in text


def test_fastchat_template_of_a_service_is_refused(tiny_sentencepiece_folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.template: 'chatgpt' must write a conversation as text"):
        load_template("chatgpt", load_tokenizer(tiny_sentencepiece_folder))


def test_unknown_template_gets_close_names(tiny_sentencepiece_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_sentencepiece_folder)
    with pytest.raises(UserError, match=r"got 'vicuna1\.1'; did you mean vicuna_v1\.1"):
        load_template("vicuna1.1", tokenizer)
    with pytest.raises(UserError, match=r"see fastchat\.conversation\.conv_templates"):
        load_template("?", tokenizer)


def test_missing_chat_template_is_refused(tmp_path: Path, tiny_sentencepiece_folder: Path) -> None:
    for folder in (tiny_sentencepiece_folder, save_chatml_tokenizer(tmp_path, chat_template=None)):
        with pytest.raises(UserError, match=r"must find a chat template.*name a FastChat template"):
            load_template("tokenizer", load_tokenizer(folder))


@pytest.mark.parametrize(
    ("name", "closing", "stop_text"),
    [("vicuna_v1.1", "</s>", "</s>"), ("dolly_v2", "### End\n\n", "### End"), ("baize", "\n", "\n")],
)
def test_closing_that_is_plain_text_is_trained_and_stops(
    tiny_tokenizer_folder: Path, name: str, closing: str, stop_text: str
) -> None:
    template = load_template(name, load_tokenizer(tiny_tokenizer_folder))
    assert trained(template.segments(TALK)) == [f"\n由题目可知：2{closing}", f" 4 {closing}"]
    assert (template.closing, template.stop_text, template.stop_token_id) == (closing, stop_text, None)


def test_trimmed_answer_is_trained_as_it_is_printed(tmp_path: Path) -> None:
    trimming = CHATML.replace("message['content']", "message['content'] | trim")
    template = load_template("tokenizer", load_tokenizer(save_chatml_tokenizer(tmp_path, trimming)))
    assert trained(template.segments(TALK)) == ["由题目可知：2<|im_end|>", "4<|im_end|>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("message['content']", "message['content'] | upper"), "the human message changed or left out"),
        (("<|im_end|>\n", "<|im_end|>{{ messages | length }}\n"), "only append to earlier turns"),
        (("{% for", "{{ raise_exception('no') if messages | length > 1 }}{% for"), "got its refusal: no"),
        (
            ("{% if add", "{% if not add_generation_prompt %}<|im_end|>thinking{% endif %}{% if add"),
            None,
        ),
        (
            ("{{ message['content'] }}", "{{ 'hm ' if message['role'] == 'assistant' }}{{ message['content'] }}"),
            "as it is",
        ),
    ],
)
def test_templates_that_change_what_was_said_are_refused(
    tmp_path: Path, change: tuple[str, str], message: str | None
) -> None:
    assert change[0] in CHATML
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path, CHATML.replace(*change)))
    with pytest.raises(UserError, match=message):
        load_template("tokenizer", tokenizer).segments(TALK)


def test_template_that_leaves_the_system_prompt_out_is_refused(tmp_path: Path) -> None:
    silent = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    )
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path, silent))
    with pytest.raises(UserError, match="the system message changed or left out"):
        load_template("tokenizer", tokenizer, system="Be brief.")
