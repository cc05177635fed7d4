"""Questions in, answers out: what `twintune generate` reads and writes."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from twintune.chat import Chat
from twintune.converters.faults import shown
from twintune.converters.instruction_formats import join_instruction
from twintune.converters.sources import Record, Rejection, read_file
from twintune.errors import UserError, raise_collected
from twintune.evaluation.answers import answer_kind, final_answer
from twintune.sampling import Sampling
from twintune.voting import check_voting, vote


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


def check_votes(samples: int | None, retries: int, sampling: Sampling) -> None:
    """Refuse flags that do not go together, before a model is loaded.

    Raises:
        UserError: for --retries without --vote, --vote with --num-return-sequences, and what check_voting raises.
    """
    if samples is None:
        if retries:
            raise UserError(f"command line: --retries must come with --vote, got {retries} without it")
        return
    if sampling.num_return_sequences > 1:
        raise UserError(
            "command line: --num-return-sequences must be left out with --vote, which says how many texts are drawn, "
            f"got {sampling.num_return_sequences}"
        )
    check_voting(samples, retries, sampling)


def write_votes(
    chat: Chat, questions: Sequence[str], samples: int, sampling: Sampling, retries: int, *, as_json: bool
) -> None:
    """Print the answer that most of `samples` texts give to each question, and how the texts were distributed."""
    votes = vote(chat, questions, samples, sampling, lambda text: final_answer(text, answer_kind(text)), retries)
    for question, cast in zip(questions, votes, strict=True):
        if as_json:
            print(json.dumps({"prompt": question} | asdict(cast) | {"tied": cast.tied}, ensure_ascii=False))
            continue
        print(f"> {question}")
        print(f"{'no answer' if cast.answer is None else cast.answer}  ({cast})\n")


def _stream(_: int, piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
