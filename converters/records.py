"""Instruction records and FastChat conversations, from JSON to Conversation and back to JSON."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from twintune.artifacts import new_file
from twintune.converters.conversation import Conversation, Message, Role
from twintune.converters.json_records import read_records, shown
from twintune.errors import raise_collected

# MindFormers' role map knows gpt only, the BELLE job's own files say assistant: both are in use.
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "human",
    "user": "human",
    "gpt": "assistant",
    "assistant": "assistant",
}


def to_conversations(path: Path, id_prefix: str = "bellemath") -> list[Conversation]:
    """Read BELLE/Alpaca records (instruction, input, output) or FastChat conversations.

    A non-empty input follows its instruction on a new line. Records without an id are numbered from 1, as
    MindFormers' alpaca_converter.py does.

    Raises:
        UserError: what read_records raises, and for every record that breaks a rule, all at once.
    """
    conversations = []
    problems: list[str] = []
    for row, record in enumerate(read_records(path), 1):
        read = _read_conversation if "conversations" in record else _read_instruction
        messages, wrong = read(record)
        identity = record.get("id", f"{id_prefix}{row}") if "conversations" in record else f"{id_prefix}{row}"
        if not isinstance(identity, str):
            wrong.append(f"id must be a text, got {shown(identity)}")
        problems.extend(f"{path}: row {row}: {problem}" for problem in wrong)
        conversations.append(Conversation(str(identity), messages))
    raise_collected(problems)
    return conversations


def write_conversations(conversations: Iterable[Conversation], path: Path) -> None:
    """Write FastChat's JSON array of `{"id": ..., "conversations": [{"from": ..., "value": ...}]}`."""
    values = [
        {
            "id": conversation.id,
            "conversations": [{"from": message.role, "value": message.text} for message in conversation.messages],
        }
        for conversation in conversations
    ]
    with new_file(path) as aside:
        aside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_instruction(record: dict[str, Any]) -> tuple[tuple[Message, ...], list[str]]:
    problems = [problem for key in ("instruction", "output") if (problem := _wrong_text(record, key))]
    if record.get("input", "") != "" and (problem := _wrong_text(record, "input")):
        problems.append(problem)
    problems.extend(
        f"{key} must be absent or empty in an instruction record, got {shown(record[key])}; "
        "write earlier turns as conversations"
        for key in ("history", "system")
        if record.get(key)
    )
    if problems:
        return (), problems
    question = "\n".join(filter(None, (record["instruction"], record.get("input", ""))))
    return (Message("human", question), Message("assistant", record["output"])), []


def _read_conversation(record: dict[str, Any]) -> tuple[tuple[Message, ...], list[str]]:
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        return (), [f"conversations must be a list of turns that is not empty, got {shown(turns)}"]
    messages, problems = [], []
    for number, turn in enumerate(turns, 1):
        problem = _wrong_turn(turn)
        if problem:
            problems.append(f"turn {number}: {problem}")
        else:
            messages.append(Message(ROLES[turn["from"]], turn["value"]))
    if not problems:
        problems.extend(_wrong_order(messages))
    return tuple(messages), problems


def _wrong_turn(turn: Any) -> str | None:
    if not isinstance(turn, dict):
        return f"a turn must be a JSON object with from and value, got {shown(turn)}"
    role = turn.get("from")
    if not isinstance(role, str) or role not in ROLES:
        return f"from must be one of {', '.join(ROLES)}, got {shown(role)}"
    return _wrong_text(turn, "value")


def _wrong_order(messages: Sequence[Message]) -> list[str]:
    roles = [message.role for message in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken and len(spoken) % 2 == 0 and spoken == ["human", "assistant"] * (len(spoken) // 2):
        return []
    return [f"turns must alternate human, assistant and end with assistant, got {', '.join(roles)}"]


def _wrong_text(record: dict[str, Any], key: str) -> str | None:
    if key not in record:
        return f"{key} must be given, got only {', '.join(record) or 'an empty object'}"
    value = record[key]
    if not isinstance(value, str):
        return f"{key} must be a text, got {shown(value)}"
    if not value.strip():
        return f"{key} must not be empty, got {value!r}; mend or remove the record"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{key} must be text that UTF-8 can hold, got half of a surrogate pair in {shown(value)}"
    return None
