"""Questions in, answers out: what `twintune generate` reads and writes."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from twintune.chat import Chat
from twintune.converters.faults import shown
from twintune.converters.instruction_formats import join_instruction
from twintune.converters.sources import Record, Rejection, read_file
from twintune.errors import UserError, raise_collected
from twintune.generation import Sampling


def read_questions(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The questions of the command line and of a file, in that order.

    Args:
        prompts: as given.
        file: .json or .jsonl records with `instruction` and perhaps `input`, or text with one a line.

    Raises:
        UserError: if there is none, or for every record without one.
    """
    questions = [*prompts, *([] if file is None else _read_file(file))]
    if not questions:
        raise UserError("command line: --prompt or --input must give a question, got none")
    return questions


def _read_file(file: Path) -> list[str]:
    if file.suffix in (".json", ".jsonl"):
        return _instructions(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: --input must be a readable UTF-8 file, got: {error}") from None
    return [line for line in lines if line.strip()]


def _instructions(file: Path) -> list[str]:
    records = list(read_file(file))
    raise_collected(f"{file}: row {record.row}: {problem}" for record in records for problem in _wrong_question(record))
    values = (record.value for record in records if isinstance(record, Record))
    return [join_instruction(value["instruction"], value.get("input") or "") for value in values]


def _wrong_question(record: Record | Rejection) -> Iterator[str]:
    if isinstance(record, Rejection):
        yield record.reason
        return
    value = record.value
    if not isinstance(value, dict):
        yield f"a record must be a JSON object, got {shown(value)}"
        return
    instruction = value.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        yield f"instruction must be a text that is not empty, got {shown(instruction)}"
    if not isinstance(value.get("input"), str | None):
        yield f"input must be a text, got {shown(value['input'])}"


def write_answers(chat: Chat, questions: Sequence[str], sampling: Sampling, *, as_json: bool) -> None:
    """Print answers to stdout: streamed for a single one, one JSON object a question with `as_json`."""
    if len(questions) == 1 and sampling.num_return_sequences == 1 and not as_json:
        chat.answer(questions, sampling, on_text=_stream)
        print()
        return
    for question, answers in zip(questions, chat.answer(questions, sampling), strict=True):
        if as_json:
            print(json.dumps({"prompt": question, "texts": answers}, ensure_ascii=False))
            continue
        print(f"> {question}")
        for answer in answers:
            print(f"{answer}\n")


def _stream(_: int, piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
