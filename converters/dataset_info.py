"""LLaMA-Factory's dataset_info.json, where one lies beside the data: never needed, always believed.

Its keys are documented in data/README.md of https://github.com/hiyouga/LLaMA-Factory.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from twintune.converters.data_files import DESCRIPTION
from twintune.converters.faults import shown
from twintune.converters.format_detection import Shape
from twintune.converters.record_layout import ALPACA, OPENAI, SHAREGPT, Columns, Tags
from twintune.errors import UserError

# What the entry of a file may say of its records; the rest tells where on a hub they are.
COLUMNS = ("prompt", "query", "response", "system", "history", "messages")
UNTRAINABLE = ("tools", "images", "videos", "audios")
PREFERENCES = ("chosen", "rejected", "kto_tag")
TAGS = {"role_tag": "role", "content_tag": "content"}
ROLES = {"user_tag": "human", "assistant_tag": "assistant", "system_tag": "system"}
TOOL_ROLES = ("observation_tag", "function_tag", "tool_calls_tag")  # refused as roles, whatever they are called


def describe(path: Path) -> tuple[Shape, str] | None:
    """The shape that dataset_info.json gives to a file beside it, with the reason; None if it names no such file.

    Raises:
        UserError: for a dataset_info.json that is not JSON, or says of the file what cannot be trained.
    """
    info = path.parent / DESCRIPTION
    if not info.is_file():
        return None
    entries = _entries(info)
    names = [name for name, entry in entries.items() if isinstance(entry, dict) and entry.get("file_name") == path.name]
    if not names:
        return None
    if any(entries[name] != entries[names[0]] for name in names):
        raise UserError(
            f"{info}: entries of one file must say the same, got {', '.join(names)} for {path.name}; "
            "remove all but one, or set data.format"
        )
    return _shape(f"{info}: {names[0]}", entries[names[0]]), f"the entry {names[0]} of {info.name} says so"


def _entries(info: Path) -> dict[str, Any]:
    try:
        entries = json.loads(info.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{info}: the file must be JSON in UTF-8, got: {error}; mend or remove it") from None
    if not isinstance(entries, dict):
        raise UserError(f"{info}: the file must be a JSON object, got {shown(entries)}; mend or remove it")
    return entries


def _shape(place: str, entry: dict[str, Any]) -> Shape:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt"):
        raise UserError(f"{place}: formatting must be alpaca or sharegpt, got {shown(formatting)}; set data.format")
    columns = _names(place, entry, "columns", (*COLUMNS, *UNTRAINABLE, *PREFERENCES))
    tags = _names(place, entry, "tags", (*TAGS, *ROLES, *TOOL_ROLES))
    if entry.get("ranking") or any(key in columns for key in PREFERENCES):
        raise UserError(f"{place}: records must be answers to train on, got preferences ({', '.join(columns)})")
    usual = ALPACA if formatting == "alpaca" else Columns()
    untrainable = (*usual.untrainable, *(columns[key] for key in UNTRAINABLE if key in columns))
    known: dict[str, Any] = {key: columns[key] for key in COLUMNS if key in columns}
    return _named(formatting, replace(usual, untrainable=untrainable, **known), _tags(tags))


def _named(formatting: str, columns: Columns, tags: Tags) -> Shape:
    if formatting == "alpaca":
        return Shape("alpaca", (columns.prompt, columns.response), columns)
    return Shape("messages" if tags.role == OPENAI.role else "sharegpt", (columns.messages,), columns, tags)


def _tags(given: dict[str, str]) -> Tags:
    known: dict[str, Any] = {TAGS[key]: name for key, name in given.items() if key in TAGS}
    roles: dict[str, Any] = {ROLES[key]: (name,) for key, name in given.items() if key in ROLES}
    return replace(SHAREGPT, **known, **roles)


def _names(place: str, entry: dict[str, Any], key: str, known: tuple[str, ...]) -> dict[str, str]:
    """A mapping of names to names in an entry; empty where it has none."""
    names = entry.get(key) or {}
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise UserError(f"{place}: {key} must be an object of texts, got {shown(names)}")
    if strange := [name for name in names if name not in known]:
        raise UserError(f"{place}: {key} must be some of {', '.join(known)}, got {', '.join(strange)}")
    return names
