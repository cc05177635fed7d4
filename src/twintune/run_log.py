"""The two logs of a run folder: log.jsonl has a line for each optimizer step, evaluation.jsonl for each evaluation.

A step's line says what the backend told, and then what it cost.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from twintune.artifacts import new_file
from twintune.backends.job import Evaluation, Step
from twintune.errors import UserError, raise_collected
from twintune.step_cost import StepCost
from twintune.watchers import QuietWatcher

LOG = "log.jsonl"
EVALUATIONS = "evaluation.jsonl"
STEP_KINDS: dict[str, Any] = {field.name: field.type for field in fields(Step)}
COST_KINDS: dict[str, Any] = {field.name: field.type for field in fields(StepCost)}
EVALUATION_KINDS: dict[str, Any] = {"step": int, "loss": float, "perplexity": float, "tokens": int, "seconds": float}


class RunLog(QuietWatcher):
    """A Watcher that writes both logs; each line can be read as soon as it is told.

    Args:
        folder: the run folder; its logs are cut back with `cut_back` before a run goes on.
        measure: tells what a step that has just ended cost.
        steps_done: steps that lie behind the checkpoint from which the run goes on; 0 begins new logs.
    """

    def __init__(self, folder: Path, measure: Callable[[Step], StepCost], steps_done: int = 0) -> None:
        self.folder = folder
        self.measure = measure
        self.mode: Literal["a", "w"] = "a" if steps_done else "w"
        self.log: TextIO = (folder / LOG).open(self.mode, encoding="utf-8")
        self.evaluations: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()
        if self.evaluations is not None:
            self.evaluations.close()

    def step(self, step: Step) -> None:
        """Write a step and what it cost."""
        _write_line(self.log, asdict(step) | asdict(self.measure(step)))

    def evaluated(self, evaluation: Evaluation) -> None:
        """Write an evaluation; a run without any has no such file."""
        if self.evaluations is None:
            self.evaluations = (self.folder / EVALUATIONS).open(self.mode, encoding="utf-8")
        values = asdict(evaluation) | {"perplexity": evaluation.perplexity}
        _write_line(self.evaluations, {name: values[name] for name in EVALUATION_KINDS})


def _write_line(stream: TextIO, values: dict[str, Any]) -> None:
    stream.write(json.dumps(values) + "\n")
    stream.flush()


def cut_back(folder: Path, step: int) -> list[str]:
    """Take from both logs what came after a step, since the run goes on from there.

    Returns:
        What was taken away, a sentence for each log that lost something.

    Raises:
        UserError: if log.jsonl does not have all steps up to that one, or a line that stays is wrong.
    """
    steps = read_steps(folder / LOG)
    if len(steps) < step:
        raise UserError(
            f"{folder / LOG}: the log must have all steps up to {step} to go on from there, got {len(steps)}; "
            "resume from an older checkpoint, or start a new run"
        )
    evaluations = sum(evaluation.step <= step for evaluation in read_evaluations(folder / EVALUATIONS))
    said = [_keep_lines(folder / LOG, step), _keep_lines(folder / EVALUATIONS, evaluations)]
    return [sentence for sentence in said if sentence]


def _keep_lines(path: Path, count: int) -> str:
    """Keep the first lines of a log, and say what was behind them."""
    if not path.exists():
        return ""
    lines, half = whole_lines(path)
    if len(lines) == count and not half:
        return ""
    with new_file(path) as aside:
        aside.write_text("".join(f"{line}\n" for line in lines[:count]), encoding="utf-8")
    half_written = ", and one that was half-written" if half else ""
    return f"{path.name}: dropped {len(lines) - count} of {len(lines)} lines, behind the checkpoint{half_written}"


def whole_lines(path: Path) -> tuple[list[str], bool]:
    """The lines of a log that were written to their end, and whether a half-written one follows.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        content = path.read_bytes()  # a half-written line may end within a character
        *lines, rest = content.split(b"\n")
        return [line.decode("utf-8") for line in lines], bool(rest)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the log must be a readable UTF-8 file, got: {error}; train first") from None


def read_log(path: Path) -> list[Step]:
    """Read a whole log.jsonl: at least one step, the steps counted from 1.

    Raises:
        UserError: for a missing or empty file and for every line that is not the step it should be.
    """
    lines, half = whole_lines(path)
    if not lines and not half:
        raise UserError(f"{path}: the log must hold at least one step, got an empty file; train first")
    if half:
        raise UserError(f"{path}: line {len(lines) + 1} must end, got one that is half-written; train again, or resume")
    return read_steps(path)


def read_steps(path: Path) -> list[Step]:
    """Read the whole lines of a log.jsonl, perhaps none, whether or not the run has ended.

    Raises:
        UserError: for a missing file and for every whole line that is not the step it should be.
    """
    lines = _read_objects(path, "a step", STEP_KINDS, COST_KINDS)
    steps = [Step(**{name: values[name] for name in STEP_KINDS}) for values in lines]
    raise_collected(
        f"{path}: line {number} must be step {number}, got step {step.step}; train again"
        for number, step in enumerate(steps, start=1)
        if step.step != number
    )
    return steps


def read_costs(path: Path) -> list[StepCost | None]:
    """What each step in the whole lines of a log.jsonl cost; None where an older version wrote the line.

    Raises:
        UserError: as read_steps, but for the numbers of the steps.
    """
    lines = _read_objects(path, "a step", STEP_KINDS, COST_KINDS)
    return [
        StepCost(**{name: values[name] for name in COST_KINDS}) if COST_KINDS.keys() <= values.keys() else None
        for values in lines
    ]


def read_evaluations(path: Path) -> list[Evaluation]:
    """Read the whole lines of an evaluation.jsonl; none where a run evaluated nothing and there is no file.

    Raises:
        UserError: for every whole line that is no evaluation.
    """
    if not path.exists():
        return []
    objects = _read_objects(path, "an evaluation", EVALUATION_KINDS, {})
    return [Evaluation(values["step"], values["loss"], values["tokens"], values["seconds"]) for values in objects]


def _read_objects(path: Path, what: str, kinds: dict[str, Any], more: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole lines as objects with these keys, and either all or none of some more."""
    objects: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in enumerate(whole_lines(path)[0], start=1):
        try:
            objects.append(_read_object(line, what, kinds, more))
        except ValueError as error:
            problems.append(f"{path}: line {number} must be {error}; train again")
    raise_collected(problems)
    return objects


def _read_object(line: str, what: str, kinds: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """One line as an object of numbers; ValueError completes the sentence `the line must be ...`."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"JSON, got: {error}") from None
    if not isinstance(values, dict) or values.keys() not in (kinds.keys(), (kinds | more).keys()):
        raise ValueError(f"an object with {', '.join(kinds)}, got {line}")
    for name, value in values.items():
        kind = (kinds | more)[name]
        if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
            raise ValueError(f"{what} whose {name} is a number of the right kind, got {value!r}")
    return values
