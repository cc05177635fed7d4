"""A template's own words around the messages, learned once for each sequence of roles.

Each message is replaced by private-use characters and the template rendered: what is left are its words. So it is
known by position, never by search, which characters the template wrote and which a record.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from twintune.converters.conversation import Message, Role
from twintune.errors import UserError

# Whitespace that templates do not write themselves: which of the two comes out tells what they trim.
LEADING, TRAILING = "\t", "\v"


class Renderer(ABC):
    """One way to write messages as text.

    Attributes:
        name: what data.template says.
        add_special_tokens: whether the tokenizer must add its own bos, because the text does not hold it.
    """

    name: str
    add_special_tokens: bool

    @abstractmethod
    def render(self, messages: Sequence[Message], answer_next: bool) -> str:
        """The whole text of `messages`, and the opening of the assistant's turn if `answer_next`.

        Raises:
            UserError: if the template refuses the messages.
        """

    def unfit(self, problem: str) -> UserError:
        """The error for a template that cannot be used."""
        return UserError(f"data.template: {self.name!r} {problem}")


class Slot(NamedTuple):
    """The place of one message.

    Attributes:
        opening: the template's words before it, after the last closing.
        trims: what the template takes off the message's ends: "", "left", "right" or "both".
        closing: the words after it with which an answer ends; empty for other roles.
    """

    opening: str
    trims: str
    closing: str = ""

    def printed(self, text: str) -> str:
        """A message's text as the template writes it."""
        if self.trims in ("left", "both"):
            text = text.lstrip()
        return text.rstrip() if self.trims in ("right", "both") else text


class Skeleton(NamedTuple):
    """The places of all messages, and the template's words after the last."""

    slots: tuple[Slot, ...]
    tail: str


def make_skeleton(
    renderer: Renderer, roles: Sequence[Role], special_tokens: Sequence[str], answer_next: bool
) -> Skeleton:
    """Learn a template's words for messages of these roles.

    An answer's closing goes up to the end of the first special token (</s>, <|im_end|>); without one it is all
    that the template writes after the answer where the conversation ends there, which may be nothing.

    Args:
        renderer: the template.
        roles: of the messages, in order.
        special_tokens: of the tokenizer.
        answer_next: whether the text ends in the opening of an answer to come; closings are not learned then.

    Raises:
        UserError: if the template leaves messages out or rewrites earlier turns.
    """
    messages = [Message(role, f"\ue000{number}\ue001") for number, role in enumerate(roles)]
    text = renderer.render(messages, answer_next)
    words = _words(renderer, text, messages)
    trims = _trims(renderer, messages, words, answer_next)
    if answer_next:
        return Skeleton(tuple(Slot(*pair) for pair in zip(words, trims, strict=False)), words[-1])
    slots = []
    for number, (message, trim) in enumerate(zip(messages, trims, strict=True)):
        closing = ""
        if message.role == "assistant":
            closing = _closing(renderer, messages[: number + 1], text, special_tokens)
        slots.append(Slot(words[number], trim, closing))
        words[number + 1] = words[number + 1].removeprefix(closing)
    return Skeleton(tuple(slots), words[-1])


def _words(renderer: Renderer, text: str, messages: Sequence[Message]) -> list[str]:
    """The stretches of `text` before, between and after the messages."""
    words, done = [], 0
    for message in messages:
        count = text.count(message.text)
        if count != 1:
            got = f"written {count} times" if count else "changed or left out"
            raise renderer.unfit(f"must keep each message as it is, got the {message.role} message {got}")
        start = text.index(message.text)
        if start < done:
            raise renderer.unfit("must only append to earlier turns, got one that rewrites them")
        words.append(text[done:start])
        done = start + len(message.text)
    return [*words, text[done:]]


def _trims(renderer: Renderer, messages: Sequence[Message], words: Sequence[str], answer_next: bool) -> list[str]:
    """What the template takes off the ends of each message."""
    spaced = [Message(message.role, f"{LEADING}{message.text}{TRAILING}") for message in messages]
    text = renderer.render(spaced, answer_next)
    around = re.split("|".join(re.escape(message.text) for message in messages), text) if messages else [text]
    names = {(True, True): "", (False, True): "left", (True, False): "right", (False, False): "both"}
    return [
        names[
            around[number] == f"{around[number].removesuffix(LEADING)}{LEADING}"
            and not words[number].endswith(LEADING),
            around[number + 1].startswith(TRAILING) and not words[number + 1].startswith(TRAILING),
        ]
        for number in range(len(messages))
    ]


def _closing(renderer: Renderer, messages: Sequence[Message], text: str, special_tokens: Sequence[str]) -> str:
    """The words that close the last of `messages`, an answer, in the `text` of a whole conversation."""
    answer = messages[-1].text
    prompt = renderer.render(messages[:-1], answer_next=True)
    ended = renderer.render(messages, answer_next=False)
    if not (text.startswith(prompt) and text.startswith(ended)):
        raise renderer.unfit("must only append to earlier turns, got one that rewrites them")
    start = text.index(answer)
    if start < len(prompt) or text[len(prompt) : start].strip():
        raise renderer.unfit(
            f"must write the assistant message as it is after the prompt, got {text[len(prompt) : start]!r} before it"
        )
    tail = ended[start + len(answer) :]
    found = [(tail.index(token), -len(token), token) for token in special_tokens if token in tail]
    return tail[: min(found)[0] + len(min(found)[2])] if found else tail
