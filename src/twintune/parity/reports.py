"""All files that a verdict is handed on as."""

from pathlib import Path

from twintune.artifacts import new_file
from twintune.parity.junit import junit_xml
from twintune.parity.markdown_report import markdown_report
from twintune.parity.page import html_page
from twintune.parity.run_card import run_card
from twintune.parity.verdict import Verdict
from twintune.parity.verdict_json import verdict_json


def write_reports(verdict: Verdict, folder: Path) -> list[Path]:
    """Write report.md, report.html, run_card.md, junit.xml and verdict.json, and return their paths.

    Files of these names in the folder are replaced, each whole or not at all.
    """
    texts = {
        "report.md": markdown_report(verdict),
        "report.html": html_page(verdict),
        "run_card.md": run_card(verdict),
        "junit.xml": junit_xml(verdict),
        "verdict.json": verdict_json(verdict),
    }
    for name, text in texts.items():
        with new_file(folder / name) as aside:
            aside.write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]
