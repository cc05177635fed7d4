"""Values of a record's keys, and the sentence of what is wrong with each."""

from collections.abc import Mapping
from typing import Any

from twintune.converters.conversation import Message
from twintune.converters.faults import shown

Turns = tuple[Message, ...]


def required_text(record: Mapping[str, Any], key: str, problems: list[str]) -> str:
    """The text of a key that must be there and not be blank; an empty one, with a problem, if it is not."""
    value = record.get(key)
    if isinstance(value, str):
        if value and not value.isspace():
            return value
        problems.append(f"{key} must not be empty, got {shown(value)}; mend or remove the record")
    elif key in record:
        problems.append(f"{key} must be a text, got {shown(value)}")
    else:
        problems.append(f"{key} must be given, got only {shown_keys(record)}")
    return ""


def optional_text(record: Mapping[str, Any], key: str | None, problems: list[str]) -> str:
    """The text of a key; an empty one where it is absent, null or blank."""
    value = None if key is None else record.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if not isinstance(value, str):
        problems.append(f"{key} must be a text, got {shown(value)}")
        return ""
    return value


def system_turns(record: Mapping[str, Any], key: str | None, problems: list[str]) -> Turns:
    """The system message that a record has in a key of its own, if any."""
    text = optional_text(record, key, problems)
    return (Message("system", text),) if text else ()


def shown_keys(record: Mapping[str, Any]) -> str:
    """The keys of a record as an error message lists them."""
    return ", ".join(record) or "an empty object"
