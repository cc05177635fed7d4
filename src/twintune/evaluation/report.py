"""What an evaluation shows: evaluation.json for machines, evaluation.md and a table for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twintune.artifacts import new_file, write_json
from twintune.evaluation.answer_log import Outcome, log_path
from twintune.evaluation.questions import Questions
from twintune.evaluation.scores import Difference, Interval, accuracy_interval, compare
from twintune.evaluation.sides import Side
from twintune.markdown import block, markdown_table
from twintune.training import versions

if TYPE_CHECKING:
    from rich.table import Table

JSON = "evaluation.json"
MARKDOWN = "evaluation.md"
SHOWN = 20  # answers of a list in evaluation.md; the logs hold all
TITLES = ("model", "backend", "correct", "accuracy", "95 % interval", "wrong", "no answer found")


@dataclass(frozen=True)
class Score:
    """One side, scored; questions are given by their number, from 1.

    Attributes:
        adapter: the sha256 of its files by their names; None for the base.
        wrong: answered, and not correct.
        no_answer: without an answer that the extractor finds, which counts as not correct.
        tied: whose first place several answers share.
        asked_again: whose first texts had no answer.
        agreement: share of the texts that give the answer counted, mean over the questions.
    """

    name: str
    model: str
    backend: str
    device: str
    dtype: str
    adapter: dict[str, str] | None
    correct: int
    total: int
    accuracy: float
    interval: Interval
    wrong: tuple[int, ...]
    no_answer: tuple[int, ...]
    tied: tuple[int, ...]
    asked_again: tuple[int, ...]
    agreement: float

    def row(self) -> tuple[str, ...]:
        """Its line in a table under TITLES."""
        interval = f"{self.interval.low:.1%} to {self.interval.high:.1%}"
        share = f"{self.correct} of {self.total}"
        return (
            self.model,
            self.backend,
            share,
            f"{self.accuracy:.1%}",
            interval,
            str(len(self.wrong)),
            str(len(self.no_answer)),
        )


@dataclass(frozen=True)
class Report:
    """All sides, and what differs between any two that share their backend or their model."""

    source: str
    votes: int
    retries: int
    left_out: tuple[str, ...]
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]


def make_report(questions: Questions, sides: Sequence[Side], outcomes: Mapping[str, Sequence[Outcome]]) -> Report:
    """Score every side, and compare base and tuned on each backend, and the backends on each model."""
    scores = tuple(_score(side, outcomes[side.name]) for side in sides)
    pairs = [
        (one, other)
        for place, one in enumerate(sides)
        for other in sides[place + 1 :]
        if (one.model == other.model) != (one.backend.value == other.backend.value)
    ]
    differences = tuple(compare(one.name, outcomes[one.name], other.name, outcomes[other.name]) for one, other in pairs)
    settings = sides[0].settings
    left_out = tuple(questions.left_out)
    return Report(
        questions.source, settings["evaluate.vote"], settings["evaluate.retries"], left_out, scores, differences
    )


def write_report(report: Report, outcomes: Mapping[str, Sequence[Outcome]], output_dir: Path) -> list[Path]:
    """Write evaluation.json and evaluation.md; their paths."""
    values: dict[str, Any] = {"total": report.scores[0].total, **asdict(report), "versions": versions()}
    write_json(output_dir / JSON, values)
    with new_file(output_dir / MARKDOWN) as aside:
        aside.write_text(_markdown(report, outcomes, output_dir), encoding="utf-8")
    return [output_dir / JSON, output_dir / MARKDOWN]


def score_table(report: Report) -> "Table":
    """The scores for a terminal."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(*TITLES, box=SIMPLE)
    for score in report.scores:
        table.add_row(*score.row())
    return table


def difference_lines(report: Report) -> list[str]:
    """One sentence for each pair of sides."""
    return [
        f"{each.second} against {each.first}: {100 * each.difference:+.1f} points "
        f"({100 * each.interval.low:+.1f} to {100 * each.interval.high:+.1f}); only {each.second} correct "
        f"{each.only_second}, only {each.first} {each.only_first}; same answer {each.same_answer} of {each.total}, "
        f"same texts {each.same_texts}"
        for each in report.differences
    ]


def _score(side: Side, outcomes: Sequence[Outcome]) -> Score:
    correct, total = sum(outcome.correct for outcome in outcomes), len(outcomes)
    first = [(max(each.distribution.values(), default=0), each) for each in outcomes]
    return Score(
        name=side.name,
        model=side.model,
        backend=side.backend.value,
        device=side.device.value,
        dtype=side.dtype.value,
        adapter=side.settings["adapter"],
        correct=correct,
        total=total,
        accuracy=correct / total,
        interval=accuracy_interval(correct, total),
        wrong=tuple(each.number for each in outcomes if not each.correct and each.answer is not None),
        no_answer=tuple(each.number for each in outcomes if each.answer is None),
        tied=tuple(each.number for most, each in first if list(each.distribution.values()).count(most) > 1),
        asked_again=tuple(each.number for each in outcomes if each.attempts > 1),
        agreement=sum(most / len(each.texts) for most, each in first) / total,
    )


def _markdown(report: Report, outcomes: Mapping[str, Sequence[Outcome]], output_dir: Path) -> str:
    parts = [
        "# Evaluation",
        f"{report.scores[0].total} questions, {report.votes} answer{'s' if report.votes > 1 else ''} each, "
        f"at most {report.retries} retries. Intervals: bootstrap over questions, 95 %.",
        block([report.source, *_machines(report), *(f"left out: {sentence}" for sentence in report.left_out)]),
        markdown_table(TITLES, (score.row() for score in report.scores)),
    ]
    if report.differences:
        parts += ["## Side by side", "\n".join(f"- {line}" for line in difference_lines(report))]
    for score in report.scores:
        parts += _side_lists(report, score, outcomes[score.name], log_path(output_dir, score.name).name)
    return "\n\n".join(parts) + "\n"


def _machines(report: Report) -> list[str]:
    return [f"{score.name}: {score.device}, {score.dtype}, {score.adapter or 'no adapter'}" for score in report.scores]


def _side_lists(report: Report, score: Score, outcomes: Sequence[Outcome], log: str) -> list[str]:
    parts = [f"## {score.name}", f"Every answer is in `{log}`."]
    if report.votes > 1:
        parts.append(
            f"Votes: {score.agreement:.1%} of the texts give the answer that counts; {len(score.tied)} questions "
            f"tied, {len(score.asked_again)} asked again."
        )
    for title, numbers in (("Wrong answers", score.wrong), ("No answer found", score.no_answer)):
        if numbers:
            more = f" (the first {SHOWN} of {len(numbers)})" if len(numbers) > SHOWN else ""
            parts += [f"### {title}{more}", _answers([outcomes[number - 1] for number in numbers[:SHOWN]])]
    return parts


def _answers(outcomes: Sequence[Outcome]) -> str:
    rows = ((str(one.number), one.question, one.gold, one.answer or "", one.texts[0]) for one in outcomes)
    return markdown_table(("number", "question", "gold", "answer", "its first text"), rows)
