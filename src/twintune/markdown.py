"""Markdown that text from elsewhere cannot break: escaped cells, tables and blocks."""

from collections.abc import Iterable, Sequence

from twintune.visible_text import visible

ESCAPES = str.maketrans({special: f"\\{special}" for special in "\\`*_~$#[]<>&|"})


def escape(text: str) -> str:
    """Text that cannot break out of a table's cell or a line, nor be read as Markdown or HTML."""
    return "<br>".join(map(visible, text.strip().translate(ESCAPES).splitlines()))


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of escaped cells."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines)


def block(lines: Iterable[str]) -> str:
    """Lines shown as they are; indented, since a fence could be closed by what it holds."""
    return "\n".join(f"    {visible(part)}" for line in lines for part in line.splitlines() or [""])
