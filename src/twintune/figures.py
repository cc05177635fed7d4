"""What every chart of this package looks like, and how it becomes a file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twintune.artifacts import new_file

LIGHT, DARK, ACCENT = "#9ecae1", "#08306b", "#d95f0e"


def tidy(panels: Iterable[Any]) -> None:
    """Take the frame from matplotlib axes and put a faint grid behind them."""
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        panel.set_axisbelow(True)


def count_steps(panel: Any) -> None:
    """Name the horizontal axis of matplotlib axes, with whole steps at its ticks."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel("optimizer step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))


def save_png(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG, whole or not at all."""
    with new_file(path) as aside:
        figure.savefig(aside, format="png")
