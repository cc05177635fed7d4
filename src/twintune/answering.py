"""Questions in, answers out: what `twintune generate` reads and writes."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twintune.chat import Chat
from twintune.converters.json_records import read_records, shown
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
    records = read_records(file)
    raise_collected(
        f"{file}: row {number}: {problem}"
        for number, record in enumerate(records, 1)
        for problem in _wrong_question(record)
    )
    return ["\n".join(filter(None, (record["instruction"], record.get("input", "")))) for record in records]


def _wrong_question(record: dict[str, Any]) -> Iterator[str]:
    instruction = record.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        yield f"instruction must be a text that is not empty, got {shown(instruction)}"
    if not isinstance(record.get("input", ""), str):
        yield f"input must be a text, got {shown(record['input'])}"


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
