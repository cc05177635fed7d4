"""Records that hold a conversation: ShareGPT, OpenAI messages, and bare lists of messages."""

from collections.abc import Mapping
from typing import Any

from twintune.converters.conversation import Message, Role
from twintune.converters.faults import shown
from twintune.converters.fields import Turns, required_text, shown_keys, system_turns
from twintune.converters.record_layout import Layout, Tags

TRAINED = ("loss", "weight", "loss_weight")  # of ms-swift, OpenAI and LLaMA-Factory: whether a turn is trained
UNTRAINABLE = ("tool_calls", "function_call", "reasoning_content")
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response")


def read_dialogue(record: Mapping[str, Any], layout: Layout, problems: list[str]) -> list[Turns]:
    """The one conversation of a record that holds its turns under one key, its system prompt perhaps beside."""
    columns = layout.columns
    if columns.messages not in record:
        problems.append(f"{columns.messages} must be given, got only {shown_keys(record)}")
        return []
    system = system_turns(record, columns.system, problems)
    return [system + read_turns(record[columns.messages], layout.tags, problems, columns.messages)]


def read_list(record: list[Any], layout: Layout, problems: list[str]) -> list[Turns]:
    """The one conversation of a record that is nothing but its turns."""
    return [read_turns(record, layout.tags, problems, "a record")]


def read_turns(turns: Any, tags: Tags, problems: list[str], name: str) -> Turns:
    """The messages of a list of turns: objects with a role, or plain texts that alternate, human first."""
    if not isinstance(turns, list) or not turns:
        problems.append(f"{name} must be a list of turns that is not empty, got {shown(turns)}")
        return ()
    messages = []
    for number, turn in enumerate(turns, 1):
        wrong: list[str] = []
        messages.append(_message(turn, number, tags, wrong))
        if wrong:
            problems.extend(f"turn {number}: {problem}" for problem in wrong)
    return tuple(messages)


def wrong_order(turns: Turns) -> str | None:
    """The sentence of what is wrong with the order of roles, or None."""
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken and spoken == ["human", "assistant"] * (len(spoken) // 2):
        return None
    return f"turns must alternate human, assistant and end with assistant, got {', '.join(roles)}"


def _message(turn: Any, number: int, tags: Tags, problems: list[str]) -> Message:
    if isinstance(turn, str):
        return Message("human" if number % 2 else "assistant", required_text({"text": turn}, "text", problems))
    if not isinstance(turn, dict):
        problems.append(f"a turn must be a JSON object with {tags.role} and {tags.content}, got {shown(turn)}")
        return Message("human", "")
    role = _role(turn, tags, problems)
    problems.extend(
        f"{key} must be absent or empty, got {shown(turn[key])}; what is not in {tags.content} cannot be trained"
        for key in UNTRAINABLE
        if turn.get(key)
    )
    return Message(role, "" if problems else _content(turn, tags.content, problems), _trained(turn, problems))


def _role(turn: Mapping[str, Any], tags: Tags, problems: list[str]) -> Role:
    value = turn.get(tags.role)
    if isinstance(value, str):
        if value in tags.human:
            return "human"
        if value in tags.assistant:
            return "assistant"
        if value in tags.system:
            return "system"
    known = ", ".join((*tags.human, *tags.assistant, *tags.system))
    remedy = "; tool use cannot be trained, remove the record" if value in TOOL_ROLES else ""
    problems.append(f"{tags.role} must be one of {known}, got {shown(value)}{remedy}")
    return "human"


def _content(turn: Mapping[str, Any], key: str, problems: list[str]) -> str:
    parts = turn.get(key)
    if not isinstance(parts, list):
        return required_text(turn, key, problems)
    texts = [_part(part, number, key, problems) for number, part in enumerate(parts, 1)]
    return "" if problems else required_text({key: "".join(texts)}, key, problems)


def _part(part: Any, number: int, key: str, problems: list[str]) -> str:
    """The text of one typed part: {"type": "text"} with "text" (OpenAI) or "value" (LLaMA-Factory)."""
    if isinstance(part, dict) and part.get("type") == "text":
        text = part.get("text", part.get("value"))
        if isinstance(text, str):
            return text
    problems.append(f"part {number} of {key} must be of type text with its text, got {shown(part)}")
    return ""


def _trained(turn: Mapping[str, Any], problems: list[str]) -> bool | None:
    given = {key: turn[key] for key in TRAINED if turn.get(key) is not None}
    if not given:
        return None
    if any(not isinstance(value, bool | int | float) or value not in (0, 1) for value in given.values()):
        problems.append(f"{', '.join(given)} must be true, false, 1 or 0, got {shown(list(given.values()))}")
    elif len(set(given.values())) > 1:
        problems.append(f"{', '.join(given)} must say the same, got {shown(list(given.values()))}")
    return bool(next(iter(given.values())))
