"""evaluation.json, evaluation.md and the table of made-up outcomes."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.evaluation.outcomes import outcomes
from twintune.backends import Choice
from twintune.evaluation.questions import Questions
from twintune.evaluation.report import Report, difference_lines, make_report, score_table, write_report
from twintune.evaluation.sides import Side

OUTCOMES = {"base-cuda": outcomes("1", None, "9", None), "tuned-cuda": outcomes("1", "2", "3", "9")}


@pytest.fixture
def report() -> Report:
    cpu, dtype, settings = (
        Choice("cpu", ""),
        Choice("float32", ""),
        {"evaluate.vote": 1, "evaluate.retries": 0, "adapter": None},
    )
    sides = [
        Side("base", None, Choice("cuda", ""), cpu, dtype, settings),
        Side("tuned", Path("run/adapter"), Choice("cuda", ""), cpu, dtype, settings),
    ]
    return make_report(Questions("evaluate.test: test.jsonl", [], ["train.json: row 3: bad"]), sides, OUTCOMES)


def test_failures_to_extract_are_apart_from_wrong_answers(report: Report) -> None:
    base, tuned = report.scores
    assert (base.correct, base.wrong, base.no_answer, base.agreement) == (1, (3,), (2, 4), 0.5)
    assert (tuned.correct, tuned.wrong, tuned.no_answer) == (3, (4,), ())
    assert base.correct + len(base.wrong) + len(base.no_answer) == base.total


def test_the_files_say_what_the_table_says(report: Report, tmp_path: Path) -> None:
    written = write_report(report, OUTCOMES, tmp_path)
    assert [path.name for path in written] == ["evaluation.json", "evaluation.md"]
    values = json.loads(written[0].read_text(encoding="utf-8"))
    assert [score["accuracy"] for score in values["scores"]] == [0.25, 0.75]
    assert values["differences"][0]["difference"] == 0.5
    assert values["left_out"] == ["train.json: row 3: bad"]
    assert values["versions"]["python"]
    page = written[1].read_text(encoding="utf-8")
    wrong, no_answer = page.split("## base-cuda")[1].split("## tuned-cuda")[0].split("### No answer found")
    assert "What is 3?" in wrong
    assert "What is 2?" in no_answer
    assert "<b>" not in page  # what a model wrote cannot break the page
    console = Console(width=100, file=StringIO(), record=True)
    console.print(score_table(report))
    table = console.export_text()
    assert all(words in table for words in ("1 of 4", "25.0%", "75.0%", "no answer found"))


def test_a_difference_is_told_in_a_sentence(report: Report) -> None:
    (line,) = difference_lines(report)
    assert line.startswith("tuned-cuda against base-cuda: +50.0 points (+0.0 to +100.0); only tuned-cuda correct 2, ")
    assert line.endswith("same answer 1 of 4, same texts 1")
