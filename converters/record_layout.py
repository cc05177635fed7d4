"""Which key of a record holds what."""

from dataclasses import dataclass
from typing import Literal

FormatName = Literal[
    "sharegpt",
    "messages",
    "message_list",
    "logic_contest",
    "math23k",
    "alpaca",
    "prompt_completion",
    "question_answer",
    "cmath",
]
InstructionJoin = Literal["newline", "concatenate", "alpaca"]


@dataclass(frozen=True)
class Columns:
    """Keys of a record, by the names that LLaMA-Factory's dataset_info.json has for them; None: not read."""

    prompt: str = "instruction"
    query: str | None = None
    response: str = "output"
    system: str | None = "system"
    history: str | None = None
    messages: str = "conversations"
    untrainable: tuple[str, ...] = ("tools", "images", "videos", "audios")  # a record that fills one is refused


@dataclass(frozen=True)
class Tags:
    """Keys of a turn, and the names of the roles; the first of several is the usual one."""

    role: str = "from"
    content: str = "value"
    human: tuple[str, ...] = ("human", "user")
    assistant: tuple[str, ...] = ("gpt", "assistant", "chatgpt")
    system: tuple[str, ...] = ("system",)


ALPACA = Columns(query="input", history="history")
SHAREGPT = Tags()
OPENAI = Tags(role="role", content="content", human=("user",), assistant=("assistant",))


@dataclass(frozen=True)
class Layout:
    """What a reader must know of a file's records.

    Attributes:
        instruction_join: how an instruction and its input become one text.
    """

    columns: Columns
    tags: Tags
    instruction_join: InstructionJoin
