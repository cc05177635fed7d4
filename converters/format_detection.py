"""Which format a file's records have, told from the keys of the first of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twintune.converters.faults import shown
from twintune.converters.fields import shown_keys
from twintune.converters.record_layout import ALPACA, OPENAI, SHAREGPT, Columns, FormatName, Tags


@dataclass(frozen=True)
class Shape:
    """A format, the keys that tell it, and where its records hold what."""

    name: FormatName
    keys: tuple[str, ...]
    columns: Columns
    tags: Tags = SHAREGPT


def _pair(name: FormatName, prompt: str, response: str) -> Shape:
    return Shape(name, (prompt, response), Columns(prompt, response=response))


LIST = Shape("message_list", (), Columns())
# The first that most records match is taken, so the more telling keys come first.
SHAPES = (
    Shape("sharegpt", ("conversations",), Columns()),
    Shape("messages", ("messages",), Columns(messages="messages"), OPENAI),
    Shape("logic_contest", ("problem", "questions"), Columns()),
    Shape("math23k", ("original_text", "equation", "ans"), Columns()),
    Shape("alpaca", ("instruction", "output"), ALPACA),
    _pair("prompt_completion", "prompt", "completion"),
    _pair("prompt_completion", "prompt", "response"),
    _pair("prompt_completion", "query", "response"),
    _pair("question_answer", "question", "answer"),
    _pair("question_answer", "questions", "answers"),
    _pair("cmath", "input", "golden"),
)
PAIRS = ("alpaca", "prompt_completion", "question_answer", "cmath")
FIELDS = ("prompt", "query", "response", "system", "history")  # of Columns, that a pair has


def detect(first: Sequence[Any], name: str = "auto") -> tuple[Shape, str] | None:
    """The shape that most of some records have, with the reason; None if there is none.

    Where no record has all keys of a shape, any of the asked format's keys will do, or of BELLE's, the usual one:
    what is missing is then named record by record.

    Args:
        first: records, at least one.
        name: the only format to look for; `auto` for any.
    """
    matches = [shape for record in first if (shape := _shape_of(record, name, whole=True))]
    if matches:
        shape, count = Counter(matches).most_common(1)[0]
        what = " and ".join(shape.keys) if shape.keys else "no keys: they are lists"
        return shape, f"{count} of the first {len(first)} records have {what}"
    for record in first:
        if shape := _shape_of(record, "alpaca" if name == "auto" else name, whole=False):
            return shape, f"none of the first {len(first)} records has {' and '.join(shape.keys)}, but some have a part"
    return None


def found_keys(first: Sequence[Any]) -> str:
    """What the first record is, as an error message shows it."""
    return f"the keys {shown_keys(first[0])}" if isinstance(first[0], dict) else shown(first[0])


def _shape_of(record: Any, name: str, *, whole: bool) -> Shape | None:
    if isinstance(record, list):
        return replace(LIST, tags=_tags(record)) if whole and name in ("auto", LIST.name) else None
    keys = _spellings(record)
    for shape in SHAPES:
        known = [key in keys for key in shape.keys]
        if not (all(known) if whole else any(known)):
            continue
        fitted = _fit(shape, record, keys)
        if name in ("auto", fitted.name):
            return fitted
    return None


def _fit(shape: Shape, record: Mapping[str, Any], keys: Mapping[str, str]) -> Shape:
    """The shape with the spelling of this record's keys, and with the tags of its turns."""
    if shape.name in PAIRS:
        columns = shape.columns
        spelled = {field: keys.get(key, key) for field in FIELDS if (key := getattr(columns, field)) is not None}
        return replace(shape, keys=tuple(keys.get(key, key) for key in shape.keys), columns=replace(columns, **spelled))
    if shape.name in ("sharegpt", "messages"):
        tags = _tags(record.get(shape.columns.messages), shape.tags)
        return replace(shape, tags=tags, name="messages" if tags is OPENAI else "sharegpt")
    return shape


def _spellings(record: Mapping[str, Any]) -> dict[str, str]:
    """The record's keys by their lower case, which a key that is in lower case has for itself."""
    return {key.lower(): key for key in record} | {key: key for key in record}


def _tags(turns: Any, otherwise: Tags = OPENAI) -> Tags:
    """The tags that the first turn is written with."""
    turn = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(turn, dict):
        return otherwise
    return next((tags for tags in (OPENAI, SHAREGPT) if tags.role in turn), otherwise)
