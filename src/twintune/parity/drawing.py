"""A chart as plain geometry, which page.html.jinja draws as SVG: paths, ticks, a band, level lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twintune.parity.axis import Axis, Tick, is_drawable

SIZE = 1000  # of the drawing in both directions; the page stretches it over the width that it has
MOST_DOTS = 100
Points = Sequence[tuple[float, float]]
Style = Literal["first", "second", "residual"]


@dataclass(frozen=True)
class Curve:
    """A line.

    Attributes:
        name: in the legend.
        style: its class in the page: thick and light, thin and dark over it, or a residual.
        path: SVG path data in SIZE x SIZE, y downwards, broken where a value is not a number.
        dots: its points as path data, where there are few enough to mark them.
    """

    name: str
    style: Style
    path: str
    dots: str = ""


@dataclass(frozen=True)
class Chart:
    """One panel.

    Attributes:
        title, note: above it; the note says what the eye should know.
        curves: drawn in this order.
        x_ticks, y_ticks: places from the left and from the bottom, 0 to 1.
        band: lowest and highest place of a limit around zero; None without one.
        zero: the place of zero; None where it is not drawn.
        levels: dashed lines, places from the bottom, with their names or none.
        gaps: path data of upright lines where a value is not a number.
    """

    title: str
    note: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    band: tuple[float, float] | None = None
    zero: float | None = None
    levels: tuple[Tick, ...] = ()
    gaps: str = ""


def curve(name: str, style: Style, points: Points, x_axis: Axis, y_axis: Axis) -> Curve:
    """A line through the points, broken where a value has no place; up to MOST_DOTS points are marked."""
    dots = _dots(points, x_axis, y_axis) if len(points) <= MOST_DOTS else ""
    return Curve(name, style, _path(points, x_axis, y_axis), dots)


def gaps(points: Points, x_axis: Axis) -> str:
    """Path data of an upright line for every value that has no place."""
    return "".join(f"M{SIZE * x_axis.place(x):.1f} 0V{SIZE}" for x, y in points if not is_drawable(y))


def _path(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    commands = []
    lifted = True
    for x, y in points:
        if not is_drawable(y):
            lifted = True
            continue
        place = _place(x, y, x_axis, y_axis)
        # The line of no length makes a lone point seen, with round ends.
        commands.append(f"M{place}h0" if lifted else f"L{place}")
        lifted = False
    return "".join(commands)


def _dots(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    return "".join(f"M{_place(x, y, x_axis, y_axis)}h0" for x, y in points if is_drawable(y))


def _place(x: float, y: float, x_axis: Axis, y_axis: Axis) -> str:
    return f"{SIZE * x_axis.place(x):.1f} {SIZE * (1 - y_axis.place(y)):.1f}"
