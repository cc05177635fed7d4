"""The answers of one model on one backend, a line a question, so that a killed evaluation goes on where it was."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twintune.artifacts import new_file
from twintune.converters.faults import shown
from twintune.errors import UserError, raise_collected


@dataclass(frozen=True)
class Outcome:
    """One question, what was answered, and whether it is right.

    Attributes:
        number: of the question, from 1.
        file, row: its record.
        kind: number or choice.
        question: the last message that the model was shown.
        gold: the right answer.
        answer: of most texts; None if no text has an answer, which counts as not correct.
        correct: whether `answer` is `gold`.
        distribution: texts by their answer.
        none: texts without an answer.
        attempts: how often it was asked.
        texts: all that the model wrote.
    """

    number: int
    file: str
    row: int
    kind: str
    question: str
    gold: str
    answer: str | None
    correct: bool
    distribution: dict[str, int]
    none: int
    attempts: int
    texts: tuple[str, ...]


KINDS: dict[str, type | tuple[type, ...]] = {
    "number": int,
    "file": str,
    "row": int,
    "kind": str,
    "question": str,
    "gold": str,
    "answer": (str, type(None)),
    "correct": bool,
    "distribution": dict,
    "none": int,
    "attempts": int,
    "texts": list,
}


def log_path(output_dir: Path, name: str) -> Path:
    """Where the answers of a side lie."""
    return output_dir / f"answers-{name}.jsonl"


def begin_log(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a log without answers: its first line holds the settings."""
    with new_file(path) as aside:
        aside.write_text(_line({"settings": dict(settings)}), encoding="utf-8")


def append(path: Path, outcomes: list[Outcome]) -> None:
    """Add lines; what is not whole after a kill is cut off by resume_log."""
    with path.open("a", encoding="utf-8") as stream:
        for outcome in outcomes:
            stream.write(_line(asdict(outcome)))
        stream.flush()
        os.fsync(stream.fileno())


def read_log(path: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """The settings and the answers of a log; an unfinished last line does not count.

    Raises:
        UserError: for a file that cannot be read, or lines that are not what this module writes.
    """
    try:
        content = path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the log must be UTF-8, got: {error}; name another --output-dir") from None
    except OSError as error:
        raise UserError(f"{path}: the log must be a readable file, got: {error.strerror}") from None
    values = [_value(line) for line in lines]
    head = values[0] if values else None
    if not isinstance(head, dict) or not isinstance(head.get("settings"), dict):
        raise UserError(f"{path}: line 1 must hold the settings of an evaluation, got none; name another --output-dir")
    raise_collected(
        f"{path}: line {number + 1} must be the answer to question {number}, got {shown(lines[number])}; "
        "delete it and all after it, and evaluate again"
        for number, value in enumerate(values[1:], 1)
        if not _is_outcome(value, number)
    )
    return head["settings"], [Outcome(**(value | {"texts": tuple(value["texts"])})) for value in values[1:]]


def resume_log(path: Path, settings: Mapping[str, Any]) -> list[Outcome]:
    """The answers that a log has already; a line that a kill left unfinished is cut off.

    Raises:
        UserError: what read_log raises, and if the log began with other settings, each by name.
    """
    began, outcomes = read_log(path)
    require_same_settings(path, began, settings)
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(whole.rindex(b"\n") + 1)
    return outcomes


def require_same_settings(
    path: Path, began: Mapping[str, Any], settings: Mapping[str, Any], free: frozenset[str] = frozenset()
) -> None:
    """Refuse a log whose settings are others, but for the keys in `free`.

    Raises:
        UserError: for every other key that differs, with both values.
    """
    settings = json.loads(json.dumps(settings))
    changed = [key for key in {**began, **settings} if key not in free and began.get(key) != settings.get(key)]
    if changed:
        there = (f"{key}: {shown(began.get(key))} there, {shown(settings.get(key))} now" for key in changed)
        raise UserError(
            f"{path}: an evaluation must go on with the settings that it began with, got others ({'; '.join(there)}); "
            "name another --output-dir"
        )


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_outcome(value: Any, number: int) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == KINDS.keys()
        and all(isinstance(value[key], kind) for key, kind in KINDS.items())
        and value["number"] == number
    )
