"""What inspect says is what is in the rows."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.tiny_tokenizers import save_sentencepiece_model
from twintune.converters import arrow
from twintune.converters.rows import Row
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError
from twintune.inspection import Inspection, inspect_recipe, pieces_of
from twintune.inspection_view import facts, print_inspection, write_page
from twintune.mindrecord_report import report_mindrecord
from twintune.recipe import Recipe, load_recipe

ANSWER = "答案是 <b>7</b> 🙂</s>."


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Forty records: one repeated, one cut, one whose answer lies beyond the cut, one without an answer."""
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOG_v", "3")
    save_sentencepiece_model(tmp_path / "model")
    records = [{"instruction": f"{number} + 3?", "output": f"{number + 3}"} for number in range(40)]
    records[3] = records[2]
    records[4] = {"instruction": "long", "output": "7 " * 800}
    records[5] = {"instruction": "long " * 800, "output": "7"}
    records[6] = {"instruction": "none", "output": " "}
    records[7] = {"instruction": "marks", "output": ANSWER}
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: ./model}\ndata: {train: ./data.json, template: vicuna_v1.1, cutoff_len: 512}\n"
    )
    return load_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def inspection(recipe: Recipe) -> Inspection:
    return inspect_recipe(recipe, 2)


def test_everything_is_counted(inspection: Inspection) -> None:
    summary = inspection.summary
    assert (summary.read, summary.kept) == (40, 38)
    assert summary.rejected == {"invalid": 1, "nothing_trained": 1, "too_long": 0}
    assert (summary.cut_rows, summary.not_closed, summary.duplicates) == (1, 1, 1)
    assert sum(bar.count for bar in inspection.histogram) == summary.conversations == 38
    assert inspection.histogram[-1].last == summary.row_length
    assert [(reason.count, reason.first) for reason in inspection.reasons] == [
        (1, "data.json: row 6"),
        (1, "data.json: row 7"),
    ]
    rows = list(arrow.read_rows(inspection.prepared.folder / "rows.arrow"))
    tokens = sum(len(row.input_ids) for row in rows)
    whole, longest, packed = inspection.padding.values()
    assert whole == pytest.approx(1 - tokens / (38 * 512), abs=1e-12)
    assert longest == pytest.approx(1 - tokens / (38 * summary.row_length), abs=1e-12)
    assert 0 <= packed < whole


def test_examples_are_the_first_and_the_worst(inspection: Inspection) -> None:
    kinds: dict[str, list[str]] = {}
    for example in inspection.examples:
        kinds.setdefault(example.why, []).append(example.place)
    assert kinds["from the beginning"] == ["data.json: row 1", "data.json: row 2"]
    assert kinds["cut"] == ["data.json: row 5"]
    assert kinds["the same as an earlier one"] == ["data.json: row 4"]
    assert "data.json: row 8" in kinds["longest"]


def test_pieces_are_the_text_with_its_labels(inspection: Inspection) -> None:
    (example,) = (example for example in inspection.examples if example.place == "data.json: row 8")
    trained = "".join(piece.text for piece in example.pieces if piece.trained and not piece.special)
    assert trained.strip() == ANSWER
    special = [(piece.text, piece.trained) for piece in example.pieces if piece.special]
    assert special == [("<s>", False), ("</s>", True)]
    assert sum(len(piece.ids) for piece in example.pieces) == example.tokens
    # An emoji of four bytes is four tokens here and one piece.
    assert any(len(piece.ids) == 4 and "🙂" in piece.text for piece in example.pieces)


def test_a_row_cut_within_a_character_shows_what_is_left(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_sentencepiece_model(tmp_path / "model"))
    ids = tokenizer.encode("ab 🙂", True).ids.tolist()[:-2]
    pieces = pieces_of(ids, [True] * len(ids), tokenizer)
    assert "".join(piece.text for piece in pieces[1:]).startswith("ab ")
    assert sum(len(piece.ids) for piece in pieces) == len(ids)


def test_terminal_and_page_show_the_same(inspection: Inspection, tmp_path: Path) -> None:
    console = Console(record=True, width=200, force_terminal=True, file=(tmp_path / "terminal.txt").open("w"))
    print_inspection(inspection, console)
    console.file.close()
    terminal = console.export_text()
    write_page(inspection, tmp_path / "page.html")
    page = html.unescape(re.sub(r"<[^>]*>", "", (tmp_path / "page.html").read_text(encoding="utf-8")))
    for name, sentence in facts(inspection):
        assert re.search(rf"{re.escape(name)}\s+{re.escape(sentence)}", terminal)
        assert sentence in page
    assert "<b>7</b>" in page, "a record's own markup must be shown, not obeyed"
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)|https?://", source), "the page must need no other file"
    assert source.count('class="trained') > 10


def test_an_old_mindrecord_is_reported(tmp_path: Path) -> None:
    mindrecord = pytest.importorskip("twintune.converters.mindrecord")
    pytest.importorskip("mindspore.mindrecord")
    ids = np.array([1, 5, 6, 7, 2, 0, 0, 0], np.int32)
    trained = np.array([-100, -100, 6, 7, 2, -100, -100, -100], np.int32)
    rows = [Row(ids, trained), Row(ids, np.full(8, -100, np.int32)), Row(ids[:5], trained[:5])]
    mindrecord.write_rows(rows, tmp_path / "old.mindrecord")
    report = report_mindrecord(tmp_path / "old.mindrecord")
    assert (report.rows, report.shortest, report.longest, report.tokens) == (3, 5, 8, 21)
    assert (report.trained_tokens, report.wholly_masked) == (6, 1)
    assert (report.trailing, report.trailing_id) == (6, 0)
    assert ("masked", "15 tokens (71.4%)") in report.lines()


def test_what_is_missing_for_a_mindrecord_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twintune.backends.missing_packages", lambda name: ["mindspore"])
    with pytest.raises(UserError, match=r"mindspore must be installed .* pip install 'twintune\[ascend\]'"):
        report_mindrecord(tmp_path / "old.mindrecord")
