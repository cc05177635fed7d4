"""A verdict in the terminal: the two sides, the ladder, the sentence, and the first difference."""

from typing import TYPE_CHECKING

from twintune.parity.verdict import Rung, Verdict
from twintune.parity.wording import conclusion, ladder_rows, outcome, side_names, version_rows
from twintune.visible_text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_DETAILS = 30
STATUS_STYLE = {"same": "green", "different": "bold red", "not measured": "dim"}
OUTCOME_STYLE = {"same": "bold green", "incomplete": "bold yellow", "different": "bold red"}


def print_verdict(verdict: Verdict, console: "Console") -> None:
    """Print the sides, the ladder with each rung's deciding measure, the verdict and the first difference."""
    console.print(_sides(verdict))
    console.print(_ladder(verdict))
    _say(console, conclusion(verdict), OUTCOME_STYLE[outcome(verdict)])
    if verdict.first_difference is not None:
        _print_difference(verdict.first_difference, console)


def _say(console: "Console", text: str, style: str | None = None) -> None:
    # The lines of a detail must stay as they are: no markup, no colours, no emoji codes.
    console.print(visible(text), style=style, markup=False, highlight=False, emoji=False)


def _table(*headers: str) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        table.add_column(visible(header), overflow="fold")
    return table


def _add(table: "Table", *cells: str, style: str | None = None) -> None:
    from rich.text import Text

    table.add_row(*(Text(visible(cell)) for cell in cells), style=style)


def _sides(verdict: Verdict) -> "Table":
    table = _table("", *side_names(verdict))
    for what in ("backend", "device", "dtype"):
        _add(table, what, *(getattr(side, what) for side in verdict.sides))
    rows = version_rows(verdict)
    for package, first, second, same in rows:
        if not same:
            _add(table, package, first, second)
    alike = sum(same for *_, same in rows)
    _add(table, "other versions", f"{alike} the same", f"{alike} the same", style="dim")
    return table


def _ladder(verdict: Verdict) -> "Table":
    table = _table("", "rung", "result", "what decides", "value", "limit")
    for cells in ladder_rows(verdict):
        _add(table, *cells, style=STATUS_STYLE[cells[2]])
    for column in (0, 4, 5):
        table.columns[column].justify = "right"
        table.columns[column].no_wrap = True
    table.columns[2].no_wrap = True
    return table


def _print_difference(rung: Rung, console: "Console") -> None:
    _say(console, rung.summary)
    if rung.place:
        _say(console, f"place         {rung.place}")
    if rung.cause:
        _say(console, f"likely cause  {rung.cause}")
    for line in rung.details[:MOST_DETAILS]:
        _say(console, f"  {line}")
    if len(rung.details) > MOST_DETAILS:
        _say(console, f"  ... and {len(rung.details) - MOST_DETAILS} more of {len(rung.details)} lines")
