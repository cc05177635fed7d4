"""Conversations to text: a FastChat template by name, or the tokenizer's own chat template.

The text is rendered turn by turn, so that it is known which characters the model must learn to write.
Prompts at generation time come from the same renderer.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from twintune.converters.conversation import Conversation, Message
from twintune.converters.tokenizer import Tokenizer
from twintune.errors import UserError

OWN_TEMPLATE = "tokenizer"
CHAT_ROLES = {"system": "system", "human": "user", "assistant": "assistant"}


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


class Template(ABC):
    """One way to write a conversation as text.

    Attributes:
        name: what data.template says.
        add_special_tokens: whether the tokenizer must add its own bos, because the text does not hold it.
        stop_token_id: the token that closes an answer; generation stops there.
    """

    name: str
    add_special_tokens: bool

    def __init__(self, name: str, tokenizer: Tokenizer, system: str | None) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._system = system
        probe = Conversation("probe", (Message("human", "question"), Message("assistant", "answer")))
        closing = self.segments(probe)[1].text.removeprefix("answer")
        self.stop_token_id = tokenizer.special_tokens[_first_special(closing, tokenizer)]

    @abstractmethod
    def _render(self, messages: Sequence[Message], answer_next: bool) -> str:
        """The whole text of `messages`, and the opening of the assistant's turn if `answer_next`."""

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant must write its answer to the last of `messages`.

        Raises:
            UserError: if the template leaves out or changes the text of a message.
        """
        messages = self._with_system(messages)
        prompt = self._render(messages, answer_next=True)
        for message in messages:
            if message.text.strip() not in prompt:
                raise self._unfit(
                    f"must keep each message as it is, got the {message.role} message changed or left out"
                )
        return prompt

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Cut the rendered text into what is read and what is trained; joined they are the whole text.

        Trained is each answer and its closing up to the end of the first special token (</s>, <|im_end|>).
        Where the template trims an answer, what it printed is trained.

        Raises:
            UserError: if the template rewrites earlier turns, changes a message or never closes an answer.
        """
        segments: list[Segment] = []
        done = ""
        messages = conversation.messages
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self.prompt_text(messages[:number])
            text = self._render(self._with_system(messages[: number + 1]), answer_next=False)
            if not (prompt.startswith(done) and text.startswith(prompt)):
                raise self._unfit("must only append to earlier turns, got one that rewrites them")
            start, end = self._answer_bounds(text, len(prompt), message.text)
            read_from = sum(len(segment.text) for segment in segments)
            segments += [Segment(text[read_from:start], False), Segment(text[start:end], True)]
            done = text
        written = sum(len(segment.text) for segment in segments)
        return [*segments, Segment(done[written:], False)]

    def _answer_bounds(self, text: str, opened: int, answer: str) -> tuple[int, int]:
        """First and last + 1 character that is trained, in `text` whose answer's turn opens at `opened`."""
        start = text.find(answer, opened)
        if start < 0:
            answer = answer.strip()
            start = text.find(answer, opened)
        if start < 0 or text[opened:start].strip():
            raise self._unfit(
                "must write the assistant message as it is after the prompt, got "
                f"{text[opened:][:60]!r} for the message {answer[:40]!r}"
            )
        closing_at = start + len(answer)
        special = _first_special(text[closing_at:], self._tokenizer)
        if not special:
            raise self._unfit(
                "must close an answer with a special token of this tokenizer, at which the model can stop, "
                f"got {text[closing_at:]!r}, which is plain text to {self._tokenizer.source}; "
                "use data.template: tokenizer, or a template made for this model"
            )
        return start, text.index(special, closing_at) + len(special)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system and messages[0].role != "system":
            return [Message("system", self._system), *messages]
        return messages

    def _unfit(self, problem: str) -> UserError:
        return UserError(f"data.template: {self.name!r} {problem}")


class FastChatTemplate(Template):
    """A template of fastchat.conversation; the tokenizer adds its own special tokens around the text."""

    add_special_tokens = True

    def _render(self, messages: Sequence[Message], answer_next: bool) -> str:
        from fastchat.conversation import get_conv_template

        chat = get_conv_template(self.name)
        if messages[0].role == "system":
            chat.set_system_message(messages[0].text)
            messages = messages[1:]
        human, assistant = chat.roles[:2]  # one template names a third, the system
        for message in messages:
            chat.append_message(human if message.role == "human" else assistant, message.text)
        if answer_next:
            chat.append_message(assistant, None)
        try:
            text: str = chat.get_prompt()
        except ValueError:
            # FastChat also names services (chatgpt, bard), which take messages and no text.
            raise self._unfit("must write a conversation as text, got the name of a service") from None
        return text


class TokenizerTemplate(Template):
    """The tokenizer's own chat template, which writes the special tokens itself."""

    add_special_tokens = False

    def _render(self, messages: Sequence[Message], answer_next: bool) -> str:
        from jinja2 import TemplateError

        turns = [{"role": CHAT_ROLES[message.role], "content": message.text} for message in messages]
        try:
            return self._tokenizer.apply_chat_template(turns, answer_next)
        except TemplateError as error:
            raise self._unfit(f"must accept the messages, got its refusal: {error}") from None


def load_template(name: str, tokenizer: Tokenizer, system: str | None = None) -> Template:
    """The template that data.template names.

    `system` replaces its system prompt, unless a record brings its own.

    Raises:
        UserError: for an unknown name, a tokenizer without chat template, or a template it cannot use.
    """
    from fastchat.conversation import conv_templates

    if name == OWN_TEMPLATE:
        if not tokenizer.has_chat_template:
            raise UserError(
                f"data.template: {name!r} must find a chat template in {tokenizer.source}, got none; "
                "name a FastChat template such as vicuna_v1.1"
            )
        return TokenizerTemplate(name, tokenizer, system)
    if name not in conv_templates:
        close = difflib.get_close_matches(name, [OWN_TEMPLATE, *conv_templates], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see fastchat.conversation.conv_templates"
        raise UserError(f"data.template: must be {OWN_TEMPLATE!r} or a FastChat template's name, got {name!r}; {hint}")
    return FastChatTemplate(name, tokenizer, system)


def _first_special(text: str, tokenizer: Tokenizer) -> str:
    """The first special token in `text`, the longest where several start there; empty if there is none."""
    found = [(text.index(token), -len(token), token) for token in tokenizer.special_tokens if token in text]
    return min(found)[2] if found else ""
