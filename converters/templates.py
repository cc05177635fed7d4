"""Conversations to text: a FastChat template by name, or jinja: the tokenizer's own, ChatML, the recipe's.

It is known of every character whether the template or a record wrote it, and whether the model must learn to
write it. Prompts at generation time come from the same renderer.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from twintune.converters.conversation import Conversation, Message, NothingTrained, Role
from twintune.converters.fastchat_templates import FastChatRenderer, fastchat_names
from twintune.converters.jinja_templates import CHATML, JinjaRenderer, is_jinja
from twintune.converters.skeletons import Renderer, Skeleton, make_skeleton
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError

OWN_TEMPLATE = "tokenizer"
CHATML_TEMPLATE = "chatml"
INLINE_TEMPLATE = "the recipe's own text"


class Segment(NamedTuple):
    """A stretch of the rendered text.

    Attributes:
        text: its characters.
        trained: whether the model learns to write them, or only reads them.
        content: whether a record wrote them, and not the template: special tokens in them are plain text.
    """

    text: str
    trained: bool
    content: bool = False


class Template:
    """One way to write a conversation as text, for one tokenizer.

    Args:
        renderer: writes the text.
        tokenizer: whose special tokens may close an answer.
        system: replaces the template's system prompt, unless a record brings its own.

    Attributes:
        name: what data.template says.
        add_special_tokens: whether the tokenizer must add its own bos, because the text does not hold it.
        closing: what follows an answer, up to the end of the first special token if there is one; empty for
            the few FastChat templates that write nothing, from which no model learns to stop.
        stop_token_id: the special token that ends `closing`, if one does; generation stops there.
        stop_text: where plain text closes an answer, the text at which generation stops.
    """

    def __init__(self, renderer: Renderer, tokenizer: Tokenizer, system: str | None) -> None:
        self.name = renderer.name
        self.add_special_tokens = renderer.add_special_tokens
        self._renderer = renderer
        self._special_tokens = list(tokenizer.special_tokens)
        self._system = system
        self._skeletons: dict[tuple[tuple[Role, ...], bool], Skeleton] = {}
        probe = self._with_system([Message("human", ""), Message("assistant", "")])
        self.closing = self._skeleton(probe, answer_next=False).slots[-1].closing
        spans = tokenizer.special_spans(self.closing)
        self.stop_token_id = tokenizer.special_tokens[self.closing[slice(*spans[0])]] if spans else None
        # The space at the end may become a part of the next token, which is not written any more.
        self.stop_text = None if spans else self.closing.rstrip() or self.closing or None

    def prompt_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The text up to where the assistant must write its answer to the last of `messages`, none of it trained.

        Raises:
            UserError: if the template leaves out or changes the text of a message.
        """
        messages = self._with_system(messages)
        skeleton, contents = self._fill(messages, answer_next=True)
        segments = []
        for slot, content in zip(skeleton.slots, contents, strict=True):
            segments += [Segment(slot.opening, False), Segment(content, False, content=True)]
        return [segment for segment in (*segments, Segment(skeleton.tail, False)) if segment.text]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The joined text of `prompt_segments`."""
        return "".join(segment.text for segment in self.prompt_segments(messages))

    def segments(
        self, conversation: Conversation, mask_history: bool = False, train_on_prompt: bool = False
    ) -> list[Segment]:
        """Cut the rendered text into what the template and the record wrote; joined they are the whole text.

        Trained is each answer, as the template prints it, and its closing.

        Args:
            conversation: what to render. A message's own `trained` has the last word about the message.
            mask_history: train the last answer only.
            train_on_prompt: train the template's words and the other messages as well.

        Raises:
            NothingTrained: if no message is to be trained.
            UserError: if both are asked for, or the template rewrites earlier turns, leaves out or changes a message.
        """
        if mask_history and train_on_prompt:
            raise UserError(
                "data.mask_history must be false where data.train_on_prompt is true, got both; choose one of them"
            )
        messages = self._with_system(conversation.messages)
        skeleton, contents = self._fill(messages, answer_next=False)
        trained = _trained_messages(messages, mask_history, train_on_prompt)
        segments = []
        for slot, content, learned in zip(skeleton.slots, contents, trained, strict=True):
            segments += [
                Segment(slot.opening, train_on_prompt),
                Segment(content, learned, content=True),
                Segment(slot.closing, learned),
            ]
        return [segment for segment in (*segments, Segment(skeleton.tail, train_on_prompt)) if segment.text]

    def _fill(self, messages: Sequence[Message], answer_next: bool) -> tuple[Skeleton, list[str]]:
        """The template's words for `messages`, and the text of each as it is printed between them."""
        skeleton = self._skeleton(messages, answer_next)
        pieces, contents = [], []
        for slot, message in zip(skeleton.slots, messages, strict=True):
            content = slot.printed(message.text)
            contents.append(content)
            pieces += [slot.opening, content, slot.closing]
        rendered = self._renderer.render(messages, answer_next)
        if "".join(pieces) + skeleton.tail != rendered:
            changed = [
                message.role for message, content in zip(messages, contents, strict=True) if content not in rendered
            ]
            raise self._renderer.unfit(
                f"must keep each message as it is, got the {changed[0] if changed else 'text around a'} message "
                "changed or left out"
            )
        return skeleton, contents

    def _skeleton(self, messages: Sequence[Message], answer_next: bool) -> Skeleton:
        key = (tuple([message.role for message in messages]), answer_next)
        if key not in self._skeletons:
            self._skeletons[key] = make_skeleton(self._renderer, key[0], self._special_tokens, answer_next)
        return self._skeletons[key]

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system and messages[0].role != "system":
            return [Message("system", self._system), *messages]
        return messages


def load_template(name: str, tokenizer: Tokenizer, system: str | None = None) -> Template:
    """The template that data.template names: `tokenizer`, `chatml`, a FastChat name, or a jinja text itself.

    `system` replaces its system prompt, unless a record brings its own.

    Raises:
        UserError: for an unknown name, a tokenizer without chat template, or a template it cannot use.
    """
    return Template(_renderer(name, tokenizer), tokenizer, system)


def _renderer(name: str, tokenizer: Tokenizer) -> Renderer:
    if is_jinja(name):
        return JinjaRenderer(INLINE_TEMPLATE, name, tokenizer.named_tokens)
    if name == CHATML_TEMPLATE:
        return JinjaRenderer(name, CHATML, tokenizer.named_tokens, add_special_tokens=True)
    if name == OWN_TEMPLATE:
        if tokenizer.chat_template is None:
            raise UserError(
                f"data.template: {name!r} must find a chat template in {tokenizer.source}, got none; "
                "name a FastChat template such as vicuna_v1.1"
            )
        return JinjaRenderer(name, tokenizer.chat_template, tokenizer.named_tokens)
    known = [OWN_TEMPLATE, CHATML_TEMPLATE, *fastchat_names()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see fastchat.conversation.conv_templates"
        raise UserError(
            f"data.template: must be {OWN_TEMPLATE!r}, {CHATML_TEMPLATE!r}, a FastChat template's name or a jinja "
            f"text, got {name!r}; {hint}"
        )
    return FastChatRenderer(name)


def _trained_messages(messages: Sequence[Message], mask_history: bool, train_on_prompt: bool) -> list[bool]:
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    wanted = set(range(len(messages)) if train_on_prompt else answers[-1:] if mask_history else answers)
    trained = [
        number in wanted if message.trained is None else message.trained for number, message in enumerate(messages)
    ]
    if not any(trained):
        raise NothingTrained(
            "at least one message must be trained, got none: "
            + ("every answer's own weight says no" if answers else "there is no answer")
        )
    return trained
