"""Records of any format to conversations, and conversations to FastChat's file."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from twintune.artifacts import new_file
from twintune.converters.conversation import Conversation
from twintune.converters.formats import load_format
from twintune.converters.record_layout import InstructionJoin
from twintune.converters.sources import Rejection, read_file
from twintune.errors import UserError, raise_collected


def to_conversations(
    path: Path, id_prefix: str = "bellemath", asked: str = "auto", instruction_join: InstructionJoin = "newline"
) -> list[Conversation]:
    """All conversations of a file.

    Raises:
        UserError: what stream_conversations raises.
    """
    return list(stream_conversations(path, id_prefix, asked, instruction_join))


def stream_conversations(
    path: Path, id_prefix: str = "bellemath", asked: str = "auto", instruction_join: InstructionJoin = "newline"
) -> Iterator[Conversation]:
    """The conversations of a file, one at a time.

    A record without an id gets the prefix and its number from 1, as MindFormers' alpaca_converter.py does.

    Raises:
        UserError: what load_format and read_file raise; at the end, for every record that breaks a rule.
    """
    record_format = load_format(path, asked, instruction_join)
    problems: list[str] = []
    for record in read_file(path):
        if isinstance(record, Rejection):
            problems.append(f"{path}: row {record.row}: {record.reason}")
            continue
        try:
            yield from record_format.conversations(record.value, f"{id_prefix}{record.row}")
        except UserError as error:
            problems.extend(f"{path}: row {record.row}: {message}" for message in error.messages)
    raise_collected(problems)


def write_conversations(conversations: Iterable[Conversation], path: Path) -> int:
    """Write FastChat's JSON array of `{"id": ..., "conversations": [{"from": ..., "value": ...}]}`; their number.

    The file is whole or absent, and memory holds one conversation. A turn whose record said whether it is
    trained says so as `loss`.
    """
    count = 0
    with new_file(path) as aside, aside.open("w", encoding="utf-8") as stream:
        for count, conversation in enumerate(conversations, 1):
            text = json.dumps(_fastchat(conversation), indent=2, ensure_ascii=False).replace("\n", "\n  ")
            stream.write(f"{'[' if count == 1 else ','}\n  {text}")
        stream.write("\n]\n" if count else "[]\n")
    return count


def _fastchat(conversation: Conversation) -> dict[str, object]:
    turns = [
        {"from": message.role, "value": message.text} | ({} if message.trained is None else {"loss": message.trained})
        for message in conversation.messages
    ]
    return {"id": conversation.id, "conversations": turns}
