"""Text from elsewhere gets no character that acts on what shows it."""

from xml.etree import ElementTree

import pytest
from hypothesis import given, strategies

from twintune.markdown import block, escape, markdown_table
from twintune.visible_text import visible

pytestmark = pytest.mark.once


@pytest.mark.parametrize("text", ["", "plain", "小明有三个苹果\u3000，", "a\tb\nc", "é ü 😀"])
def test_what_has_a_picture_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "␛[31m"),
        ("\x00\r\x7f", "␀␍\\u007f"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800\ufffe", "\\ud800\\ufffe"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_what_acts_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(strategies.text(strategies.characters(exclude_categories=())))
def test_any_text_can_be_written_as_utf8_and_read_back_from_xml(text: str) -> None:
    element = ElementTree.Element("text")
    element.text = visible(text)
    read = ElementTree.fromstring(ElementTree.tostring(element, encoding="utf-8"))  # noqa: S314  our own
    assert (read.text or "") == visible(text)


@given(strategies.text("ab|\\`\n\r\x0b\u2028<", max_size=12))
def test_a_cell_stays_one_cell_of_one_line(text: str) -> None:
    table = markdown_table(("what",), [(text,)])
    assert len(table.splitlines()) == 3
    row = table.splitlines()[2].replace("\\\\", "")
    assert row.count("|") - row.count("\\|") == 2


def test_markdown_is_escaped() -> None:
    assert escape("[x](y) *z*") == "\\[x\\](y) \\*z\\*"


@given(strategies.lists(strategies.text("a`\n\r\x0b #"), max_size=4))
def test_no_line_of_a_block_leaves_it(lines: list[str]) -> None:
    assert all(line.startswith("    ") for line in block(lines).splitlines())
