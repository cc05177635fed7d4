"""What a file's records are: told by the user, by a dataset_info.json beside the file, or by their keys."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from twintune.converters.contest_formats import read_logic_contest, read_math23k
from twintune.converters.conversation import Conversation
from twintune.converters.dataset_info import describe
from twintune.converters.dialogue_formats import read_dialogue, read_list, wrong_order
from twintune.converters.faults import shown
from twintune.converters.fields import Turns
from twintune.converters.format_detection import Shape, detect, found_keys
from twintune.converters.instruction_formats import read_instruction, read_prompt_completion
from twintune.converters.record_layout import FormatName, InstructionJoin, Layout
from twintune.converters.sources import Rejection, read_file
from twintune.errors import UserError, raise_collected

READERS: dict[FormatName, Callable[[Any, Layout, list[str]], list[Turns]]] = {
    "sharegpt": read_dialogue,
    "messages": read_dialogue,
    "message_list": read_list,
    "logic_contest": read_logic_contest,
    "math23k": read_math23k,
    "alpaca": read_instruction,
    "prompt_completion": read_prompt_completion,
    "question_answer": read_instruction,
    "cmath": read_instruction,
}
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
FIRST = 20  # records that tell the format


@dataclass(frozen=True)
class RecordFormat:
    """How the records of one file are read.

    Attributes:
        reason: why this format was chosen, for print.
    """

    name: FormatName
    reason: str
    layout: Layout

    def conversations(self, value: Any, identity: str) -> list[Conversation]:
        """The conversations of a record: one, or one for each question of a logic contest's problem.

        Args:
            value: as read_file gave it.
            identity: the id for a record that has none of its own; the questions of a problem get it with
                their number.

        Raises:
            UserError: for all that is wrong, each a sentence without file and row.
        """
        problems: list[str] = []
        turns = self._turns(value, problems)
        if isinstance(value, dict):
            identity = _own_identity(value, identity, problems)
        if not problems:
            problems.extend(wrong for each in turns if (wrong := wrong_order(each)))
        if problems:
            raise UserError(*problems)
        if self.name != "logic_contest":
            return [Conversation(identity, each) for each in turns]
        return [Conversation(f"{identity}-{number}", each) for number, each in enumerate(turns, 1)]

    def _turns(self, value: Any, problems: list[str]) -> list[Turns]:
        if self.name == "message_list":
            if not isinstance(value, list):
                problems.append(f"a record must be a list of messages, got {shown(value)}")
                return []
        elif not isinstance(value, dict):
            problems.append(f"a record must be a JSON object, got {shown(value)}")
            return []
        else:
            for key in self.layout.columns.untrainable:
                if key in value and value[key] not in (None, "", "[]", [], {}):
                    problems.append(f"{key} must be absent or empty, got {shown(value[key])}; only text is trained")
        return READERS[self.name](value, self.layout, problems)


def load_format(path: Path, asked: str = "auto", instruction_join: InstructionJoin = "newline") -> RecordFormat:
    """The format of a file: the asked one, or what dataset_info.json or the first records say.

    Raises:
        UserError: for an unknown name, for what read_file and describe raise, for records of no known format,
            and for a file without one record that can be read.
    """
    if asked not in ("auto", *FORMATS):
        close = difflib.get_close_matches(asked, FORMATS, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"data.format must be auto or one of {', '.join(FORMATS)}, got {asked!r}{meant}")
    if asked == "auto" and (described := describe(path)):
        return _record_format(*described, instruction_join)
    return detect_format(path, _first_values(path), asked, instruction_join)


def detect_format(
    path: Path, first: Sequence[Any], asked: str = "auto", instruction_join: InstructionJoin = "newline"
) -> RecordFormat:
    """The format that the first records of a file have, at least one.

    Raises:
        UserError: if they have the keys of no known format, or not those of the asked one.
    """
    if detected := detect(first, asked):
        shape, reason = detected
        return _record_format(shape, reason if asked == "auto" else "as asked", instruction_join)
    known = f"of a known format ({', '.join(FORMATS)})" if asked == "auto" else f"{asked}, as data.format says"
    raise UserError(
        f"{path}: records must be {known}, got {found_keys(first)}; "
        "set data.format, or name the columns in a dataset_info.json beside the file"
    )


def _record_format(shape: Shape, reason: str, instruction_join: InstructionJoin) -> RecordFormat:
    return RecordFormat(shape.name, reason, Layout(shape.columns, shape.tags, instruction_join))


def _first_values(path: Path) -> list[Any]:
    """The first records; what is malformed before them is passed over here, and told by whoever reads the file."""
    malformed: list[Rejection] = []
    values: list[Any] = []
    for record in read_file(path):
        if isinstance(record, Rejection):
            malformed.append(record)
            continue
        values.append(record.value)
        if len(values) == FIRST:
            break
    if not values:
        raise_collected(f"{path}: row {rejection.row}: {rejection.reason}" for rejection in malformed)
    return values


def _own_identity(record: dict[str, Any], otherwise: str, problems: list[str]) -> str:
    identity = record.get("id")
    if identity is None:
        return otherwise
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        problems.append(f"id must be a text or a whole number, got {shown(identity)}")
        return otherwise
    return str(identity)
