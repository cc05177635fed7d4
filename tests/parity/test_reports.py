"""A verdict as files and in the terminal: the same facts in each, and no text breaks out."""

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_command

from tests.parity.demo_verdicts import EVIL, failing_verdict, hostile_verdict, incomplete_verdict, passing_verdict
from twintune.parity.junit import junit_xml
from twintune.parity.markdown_report import markdown_report
from twintune.parity.page import html_page
from twintune.parity.reports import write_reports
from twintune.parity.run_card import commands, run_card
from twintune.parity.terminal import MOST_DETAILS, print_verdict
from twintune.parity.verdict import Verdict
from twintune.parity.verdict_json import verdict_json
from twintune.parity_commands import parity_app
from twintune.visible_text import visible

NAMES = ["report.md", "report.html", "run_card.md", "junit.xml", "verdict.json"]


def terminal(verdict: Verdict, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_verdict(verdict, console)
    return console.export_text()


def plain(text: str) -> str:
    """A report's text without its own escapes and line breaks."""
    return re.sub(r"[\s│]+", " ", text.replace("\\", "").replace("&lt;", "<"))


REPORTS: list[Callable[[Verdict], str]] = [
    markdown_report,
    html_page,
    run_card,
    junit_xml,
    verdict_json,
    terminal,
]


def test_all_files_are_written_and_old_ones_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    assert write_reports(failing_verdict(), folder) == [folder / name for name in NAMES]
    write_reports(passing_verdict(), folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert "ot the same job" not in (folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("report", REPORTS)
def test_every_report_names_the_verdict_the_place_and_the_cause(report: Callable[[Verdict], str]) -> None:
    verdict = failing_verdict()
    text, rung = plain(report(verdict)), verdict.first_difference
    assert rung is not None
    for fact in ("Not the same job", rung.place, rung.cause, rung.name):
        assert fact in text


@pytest.mark.parametrize("report", [markdown_report, html_page, junit_xml, verdict_json, terminal])
def test_the_lines_that_show_the_difference_are_there(report: Callable[[Verdict], str]) -> None:
    assert "吃了 4.0e-01 <-- first above 1e-04" in plain(report(failing_verdict()))


@pytest.mark.parametrize("report", REPORTS)
def test_what_was_not_measured_is_not_called_the_same(report: Callable[[Verdict], str]) -> None:
    text = plain(report(incomplete_verdict()))
    assert "No difference found, but not everything was measured" in text
    assert "The same job" not in text
    assert "The bundle holds no texts." in text


def test_the_ladder_fits_a_terminal_with_every_rung() -> None:
    text = terminal(passing_verdict())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert [int(number) for number in re.findall(r"^ *(\d+)  \w", text, re.MULTILINE)] == list(range(1, 13))
    assert "The same job: 12 of 12 rungs measured, all within their limits." in text


def test_long_details_are_cut_in_the_terminal_and_counted() -> None:
    verdict = failing_verdict()
    rungs = [replace(rung, details=("line",) * (MOST_DETAILS + 7)) for rung in verdict.rungs]
    assert f"... and 7 more of {MOST_DETAILS + 7} lines" in terminal(replace(verdict, rungs=tuple(rungs)))


def test_json_holds_the_whole_verdict() -> None:
    verdict = failing_verdict()
    values = json.loads(verdict_json(verdict))
    assert {name: values[name] for name in ("schema_version", "same", "outcome", "first_difference")} == {
        "schema_version": 1,
        "same": False,
        "outcome": "different",
        "first_difference": 5,
    }
    assert [set(rung) for rung in values["rungs"]] == [
        {"number", "name", "status", "summary", "measures", "place", "cause", "details"}
    ] * 12
    assert values["rungs"][4]["measures"][0] == {
        "name": "largest relative error of logits",
        "value": 0.61,
        "limit": 1e-4,
        "place": "row 7, position 41",
        "holds": False,
    }
    assert values["sides"][1]["steps"][2]["loss"] == verdict.sides[1].steps[2].loss
    assert values["tolerances"]["loss"] == {"limit": 1e-5, "source": "50 steps of a tiny model in float32"}
    assert (values["job"], values["stage_errors"]) == (verdict.job, verdict.stage_errors)


def test_json_has_null_for_what_is_no_number_and_keeps_any_text() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = verdict_json(hostile_verdict())
    text.encode("utf-8")
    values = json.loads(text, parse_constant=refuse)
    assert values["rungs"][0]["measures"][0]["value"] is None
    assert values["rungs"][0]["measures"][0]["holds"] is False
    assert values["sides"][0]["steps"][4]["loss"] is None
    assert values["rungs"][0]["cause"].startswith(EVIL)


def test_junit_has_a_case_a_rung() -> None:
    root = ElementTree.fromstring(junit_xml(failing_verdict()))  # noqa: S314  our own
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [len(cases), len(suite.findall("testcase/failure")), len(suite.findall("testcase/skipped"))] == [12, 1, 7]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["12", "1", "0", "7"]
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["12", "1", "0"]
    names = [case.get("name", "") for case in cases]
    assert names == sorted(names)
    assert {case.get("classname") for case in cases} == {"twintune.parity"}
    assert "largest relative error of logits: 0.61 of at most 1e-04" in (cases[4].findtext("failure") or "")


def test_junit_is_xml_whatever_the_text() -> None:
    root = ElementTree.fromstring(junit_xml(hostile_verdict()))  # noqa: S314  our own
    case = root.find("testsuite/testcase")
    assert case is not None
    assert visible(EVIL) in case.get("name", "")


class Tags(HTMLParser):
    """Every tag and attribute of a page, and the tags that were not closed."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("make", [passing_verdict, failing_verdict, hostile_verdict])
def test_the_page_is_whole_and_needs_nothing_else(make: Callable[[], Verdict]) -> None:
    page = html_page(make())
    tags = Tags(page)
    assert not tags.open
    assert not tags.seen & {"script", "link", "img", "iframe", "object", "base"}
    assert not tags.attributes & {"src", "href", "onload", "onclick", "onerror"}
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_text_is_shown_as_it_is() -> None:
    page = html_page(hostile_verdict())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert not set(page) & {"\x1b", "\x00", "\u202e", "\ud800"}


@pytest.mark.parametrize("report", [markdown_report, run_card])
def test_hostile_text_leaves_markdown_tables_whole(report: Callable[[Verdict], str]) -> None:
    lines = report(hostile_verdict()).splitlines()
    columns = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines if line.startswith("|")]
    rules = [len(re.findall(r"\|", line)) for line in lines if line.startswith("| ---")]
    assert set(columns) == set(rules)
    assert not [
        line for line in lines if "<script>" in line.replace("\\<script\\>", "") and not line.startswith("    ")
    ]


def test_the_terminal_gets_no_control_characters() -> None:
    text = terminal(hostile_verdict())
    assert not set(text) & {"\x1b", "\x00", "\u202e", "\ud800"}
    assert "␛[31m" in text


def test_the_page_without_steps_and_stages_says_so() -> None:
    verdict = passing_verdict()
    first, second = (replace(side, steps=()) for side in verdict.sides)
    page = html_page(replace(verdict, sides=(first, second), stage_errors={}))
    assert "<svg" not in page
    assert "Neither side has a log of steps." in page
    assert "The hidden states were not measured." in page


def test_the_run_card_says_what_was_not_measured_and_how_to_do_it_again() -> None:
    text = run_card(failing_verdict())
    assert "| 6, 7, 8, 9, 10, 11, 12 | Not measured, since rung 5 does not hold. |" in text
    for fact in ("sha256 5d1f…9c20", "AdamW", "2.13.0", "8 repeats with perturbed rounding"):
        assert fact in text


def test_the_commands_of_the_run_card_are_those_of_the_command_line() -> None:
    first, second = failing_verdict().sides
    verdict = replace(failing_verdict(), sides=(replace(first, name="my run; rm x"), second))
    parity = get_command(parity_app)
    assert isinstance(parity, TyperGroup)
    parsed = []
    for line in commands(verdict):
        program, group, name, *arguments = shlex.split(line)
        assert (program, group) == ("twintune", "parity")
        context = parity.commands[name].make_context(name, arguments)  # parsed, not run
        parsed.append((name, context.params))
    assert [name for name, _ in parsed] == ["record", "record", "cross", "compare"]
    record = parsed[1][1]
    assert [record[name] for name in ("backend", "device", "steps")] == ["cuda", "cuda", 20]
    assert record["overrides"] == ["backend.dtype=float32"]
    assert [str(record[name]) for name in ("output", "peer")] == ["recorded-on-gpu", "my run; rm x"]
    assert [str(parsed[2][1][name]) for name in ("bundle", "peer")] == ["my run; rm x", "recorded-on-gpu"]


def test_a_side_without_a_step_is_said() -> None:
    verdict = passing_verdict(3)
    first, second = verdict.sides
    text = markdown_report(replace(verdict, sides=(first, replace(second, steps=second.steps[:2]))))
    assert re.search(r"^\| 3 \| [\d.]+ \| no step \|  \| [\d.]+ \| no step \|  \|$", text, re.MULTILINE)


def test_reports_import_no_framework_and_no_matplotlib(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import twintune.parity.reports, twintune.parity.terminal\n"
        "from twintune.parity.verdict import Side, Verdict\n"
        "side = Side('a', 'cuda', 'cpu', 'float32', {})\n"
        "twintune.parity.reports.write_reports(Verdict((side, side), (), {}), Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'mindspore', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
