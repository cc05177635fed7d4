"""Two logs side by side, the curve and the report."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from twintune.backends.job import Step
from twintune.errors import UserError
from twintune.report import (
    Accuracy,
    Example,
    compare_logs,
    loss_curve_png,
    loss_table,
    verdict,
    write_report,
)

FIRST = [Step(1, 2.0, 1.5, 1e-3, 40, 0.5), Step(2, 1.0, 1.0, 5e-4, 42, 0.5), Step(3, 0.5, 0.75, 0.0, 41, 0.5)]
# Powers of two, so that the differences are exact: -2**-10 and 2**-12 in loss, 2**-8 in gradient norm.
SECOND = [
    FIRST[0],
    replace(FIRST[1], loss=1 - 2**-10),
    replace(FIRST[2], loss=0.5 + 2**-12, grad_norm=0.75 + 2**-8),
]


def write_log(path: Path, steps: Sequence[Step]) -> Path:
    path.write_text("".join(json.dumps(asdict(step)) + "\n" for step in steps), encoding="utf-8")
    return path


def report(folder: Path, question: str = "1 + 1?", answer: str = "2") -> str:
    path = write_report(
        folder,
        title="School math",
        curves={"cuda": FIRST, "ascend": SECOND},
        accuracies=[
            Accuracy("base", 1, 8, "cuda: it has a KV cache"),
            Accuracy("tuned by ascend", 6, 8, "cuda"),
        ],
        examples=[Example(question, "The answer is 2.", {"base": answer})],
        machine={"python": "3.11", "processor": "2 cores"},
    )
    return path.read_text(encoding="utf-8")


def test_the_largest_differences_are_absolute() -> None:
    comparison = compare_logs(FIRST, SECOND)
    assert [pair.loss_difference for pair in comparison.pairs] == [0.0, -(2**-10), 2**-12]
    assert comparison.largest_loss_difference == 2**-10
    assert comparison.largest_grad_norm_difference == 2**-8


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_a_number_is_not_overlooked(place: int) -> None:
    broken = [replace(step, loss=math.nan) if number == place else step for number, step in enumerate(SECOND)]
    assert math.isnan(compare_logs(FIRST, broken).largest_loss_difference)


@pytest.mark.parametrize("other", [FIRST[:2], FIRST[1:] + FIRST[:1], []])
def test_logs_of_other_steps_are_refused(other: list[Step]) -> None:
    with pytest.raises(UserError, match="must have the same steps"):
        compare_logs(FIRST, other)


def test_two_empty_logs_are_refused() -> None:
    with pytest.raises(UserError, match="at least one, got none and none"):
        compare_logs([], [])


def test_the_table_fits_a_terminal_and_holds_every_step() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(loss_table(compare_logs(FIRST, SECOND), ("cuda", "ascend")))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "1.000000", "0.999023", "-9.8e-04", "1.000000", "1.000000", "+0.0e+00"] in lines
    assert ["largest", "9.8e-04", "3.9e-03"] in lines
    assert "…" not in text  # nothing was cut


def test_the_verdict_names_the_largest_differences() -> None:
    sentence = verdict(compare_logs(FIRST, SECOND), ("cuda", "ascend"))
    assert sentence == ("Over 3 steps cuda and ascend differ by at most 9.8e-04 in loss and 3.9e-03 in gradient norm.")


def test_the_report_holds_the_verdict_the_scores_and_the_machine(tmp_path: Path) -> None:
    lines = report(tmp_path).splitlines()
    assert lines[0] == "# School math"
    assert verdict(compare_logs(FIRST, SECOND), ("cuda", "ascend")) in lines
    assert "| base | 1 of 8 | 12.5% | cuda: it has a KV cache |" in lines
    assert "| tuned by ascend | 6 of 8 | 75.0% | cuda |" in lines
    assert "| 2 | 1.000000 | 0.999023 | -9.8e-04 | 1.000000 | 1.000000 | +0.0e+00 |" in lines
    assert "| processor | 2 cores |" in lines
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "loss_curve.png"}


def test_model_text_cannot_break_out_of_its_cell(tmp_path: Path) -> None:
    text = report(tmp_path, question="a\n# b", answer="1 | 2\n\n| 3 | 4 |\r\n![x](y) <b>&amp;` $x$")
    assert "**a<br>\\# b**" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| base | 1 \\|"))
    assert row == ("| base | 1 \\| 2<br><br>\\| 3 \\| 4 \\|<br>!\\[x\\](y) \\<b\\>\\&amp;\\` \\$x\\$ |")


def test_the_curve_is_a_picture_with_both_lines(tmp_path: Path) -> None:
    loss_curve_png(tmp_path / "curve.png", {"cuda": FIRST, "ascend": SECOND})
    pixels = (imread(tmp_path / "curve.png")[..., :3] * 255).round().astype(int)
    for colour in (0x9ECAE1, 0x08306B, 0xA50F15):
        wanted = (colour >> 16, colour >> 8 & 255, colour & 255)
        assert (pixels == wanted).all(axis=-1).sum() > 20, f"no line of colour {colour:06x}"


def test_a_report_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must have the same steps"):
        write_report(tmp_path, title="", curves={"a": FIRST, "b": FIRST[:1]}, accuracies=[], examples=[], machine={})
    assert not any(tmp_path.iterdir())
