"""The files of `twintune reason`: the contest file with its reasoning, and beside it what is not in it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twintune.artifacts import new_file
from twintune.converters.data_files import find_files
from twintune.converters.sources import Rejection
from twintune.errors import UserError
from twintune.reasoning.fill import Outcome


@dataclass(frozen=True)
class Filled:
    """What a run wrote.

    Attributes:
        output: the contest file.
        failed: the file of what is not in it; None if all is.
        states: how many questions came out how; `rejected` counts records that break a rule.
    """

    output: Path
    failed: Path | None
    states: Counter[str]

    @property
    def read(self) -> int:
        """Questions read, and records that break a rule."""
        return self.states.total()

    @property
    def filled(self) -> int:
        """Questions in the output."""
        return self.read - self.failures

    @property
    def failures(self) -> int:
        """Questions and records that are not in the output."""
        return self.states["failed"] + self.states["rejected"]


def failed_file(output: Path) -> Path:
    """Where the questions go that are not in the output."""
    return output.with_name(f"{output.stem}.failed.jsonl")


def refuse_overwriting(output: Path, entries: Iterable[str]) -> None:
    """Raise UserError if `output` is one of the files read, or one that no run has left to be mended."""
    if output.suffix != ".jsonl":
        raise UserError(f"{output}: the output must be a .jsonl file, got another name")
    if any(path.resolve() == output.resolve() for entry in entries for path in find_files(entry)):
        raise UserError(f"{output}: the output must be another file than the questions', got the same; name another")
    # A file with failures beside it is what an earlier run wrote, and running again is how these are mended.
    if output.exists() and not failed_file(output).exists():
        raise UserError(f"{output}: the output must be a new file, got one that is there; delete it or name another")


def write_filled(output: Path, outcomes: Sequence[Outcome], rejections: Sequence[Rejection]) -> Filled:
    """Write what is filled, and with its reason what is not: every question is in one of the two files."""
    failed = failed_file(output)
    lines = [*map(_failure, (outcome for outcome in outcomes if outcome.state == "failed"))]
    lines += [rejection._asdict() for rejection in rejections]
    _write_lines(output, _records(outcomes))
    if lines:
        _write_lines(failed, lines)
    else:
        failed.unlink(missing_ok=True)
    states: Counter[str] = Counter(outcome.state for outcome in outcomes)
    states["rejected"] = len(rejections)
    return Filled(output, failed if lines else None, states)


def _records(outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    """Each record as it was, with the questions that did not fail and the reasoning that was missing."""
    kept: dict[int, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for outcome in outcomes:
        if outcome.state == "failed":
            continue
        record = outcome.ask.record.value
        written = {"reasoning": outcome.text} if outcome.state in ("asked", "cached") else {}
        question = record["questions"][outcome.ask.number - 1] | written
        kept.setdefault(id(record), (record, []))[1].append(question)
    yield from (record | {"questions": questions} for record, questions in kept.values())


def _failure(outcome: Outcome) -> dict[str, Any]:
    record, number = outcome.ask.record, outcome.ask.number
    alone = record.value | {"questions": [record.value["questions"][number - 1]]}
    return {"path": str(record.path), "row": record.row, "reason": outcome.text, "question": number, "record": alone}


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with new_file(path) as aside, aside.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values)
