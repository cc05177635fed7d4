"""A conversation, whatever file it came from: what templates render."""

from dataclasses import dataclass
from typing import Literal

from twintune.errors import UserError

Role = Literal["system", "human", "assistant"]


class NothingTrained(UserError):
    """A conversation of which no token would be trained."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        text: what is said.
        trained: whether its record asks for the turn to be trained; None leaves it to the recipe.
    """

    role: Role
    text: str
    trained: bool | None = None


@dataclass(frozen=True)
class Conversation:
    """Human and assistant in turn, after an optional system message; the assistant speaks last."""

    id: str
    messages: tuple[Message, ...]
