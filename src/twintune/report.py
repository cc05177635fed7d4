"""What a pair of runs is shown as: the logs side by side, the loss curves, and report.md."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from twintune.artifacts import new_file
from twintune.backends.job import Step
from twintune.errors import UserError
from twintune.figures import DARK, LIGHT, count_steps, save_png, tidy
from twintune.markdown import escape, markdown_table

REPORT = "report.md"
LOSS_CURVE = "loss_curve.png"


@dataclass(frozen=True)
class StepPair:
    """The same optimizer step in two logs; differences are second minus first."""

    first: Step
    second: Step

    @property
    def loss_difference(self) -> float:
        """Signed difference of the losses."""
        return self.second.loss - self.first.loss

    @property
    def grad_norm_difference(self) -> float:
        """Signed difference of the gradient norms before clipping."""
        return self.second.grad_norm - self.first.grad_norm


@dataclass(frozen=True)
class LogComparison:
    """Two logs of the same steps; the largest absolute differences are nan if any difference is."""

    pairs: tuple[StepPair, ...]

    @property
    def largest_loss_difference(self) -> float:
        """Over all steps, absolute."""
        return _largest(pair.loss_difference for pair in self.pairs)

    @property
    def largest_grad_norm_difference(self) -> float:
        """Over all steps, absolute."""
        return _largest(pair.grad_norm_difference for pair in self.pairs)


@dataclass(frozen=True)
class Accuracy:
    """How many held-out problems one model got right, and how it was scored."""

    model: str
    correct: int
    total: int
    note: str  # which backend scored it, and why that one


@dataclass(frozen=True)
class Example:
    """One held-out question, its gold answer, and every model's own answer by the model's name."""

    question: str
    gold: str
    answers: Mapping[str, str]


def compare_logs(first: Sequence[Step], second: Sequence[Step]) -> LogComparison:
    """Pair two logs step by step.

    Raises:
        UserError: if they are empty or do not have the same steps.
    """
    steps, others = [step.step for step in first], [step.step for step in second]
    if not steps or steps != others:
        raise UserError(
            f"the two logs must have the same steps, at least one, got {_span(steps)} and {_span(others)}; "
            "train both from the same recipe"
        )
    return LogComparison(tuple(StepPair(*pair) for pair in zip(first, second, strict=True)))


def loss_table(comparison: LogComparison, names: tuple[str, str]) -> Table:
    """Loss and gradient norm by step for both runs, with the largest differences in the last line."""
    first, second = names
    # Seven columns fit a terminal of 80 only without vertical rules and padding.
    table = Table(title=verdict(comparison, names), title_justify="left", box=SIMPLE, padding=0, show_footer=True)
    footers = [
        "largest",
        *("", "", f"{comparison.largest_loss_difference:.1e}"),
        *("", "", f"{comparison.largest_grad_norm_difference:.1e}"),
    ]
    for header, footer in zip(_headers(first, second), footers, strict=True):
        table.add_column(header, footer=footer, justify="right")
    for cells in _step_cells(comparison):
        table.add_row(*cells)
    return table


def verdict(comparison: LogComparison, names: tuple[str, str]) -> str:
    """The comparison in one sentence."""
    return (
        f"Over {len(comparison.pairs)} steps {names[0]} and {names[1]} differ by at most "
        f"{comparison.largest_loss_difference:.1e} in loss and "
        f"{comparison.largest_grad_norm_difference:.1e} in gradient norm."
    )


def loss_curve_png(path: Path, curves: Mapping[str, Sequence[Step]]) -> None:
    """Draw exactly two loss curves over each other, and below them second minus first.

    Raises:
        UserError: if the two do not have the same steps.
    """
    # Figure without pyplot draws with Agg: no display, no global state.
    from matplotlib.figure import Figure

    (first, second), (first_log, second_log) = curves, curves.values()
    comparison = compare_logs(first_log, second_log)
    steps = [pair.first.step for pair in comparison.pairs]
    figure = Figure(figsize=(7.5, 5.0), dpi=150, layout="constrained")
    losses, residuals = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    losses.plot(steps, [step.loss for step in first_log], color=LIGHT, linewidth=5, label=first)
    losses.plot(steps, [step.loss for step in second_log], color=DARK, linewidth=1.2, label=second)
    losses.set(title="Training loss, same rows, same initial adapter", ylabel="loss")
    losses.legend(frameon=False)
    residuals.axhline(0.0, color="#999999", linewidth=0.8)
    residuals.plot(steps, [pair.loss_difference for pair in comparison.pairs], color="#a50f15", linewidth=1.0)
    residuals.set_ylabel(f"{second}\nminus {first}")
    residuals.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    count_steps(residuals)
    tidy((losses, residuals))
    figure.align_ylabels()
    save_png(figure, path)


def write_report(
    folder: Path,
    *,
    title: str,
    curves: Mapping[str, Sequence[Step]],
    accuracies: Sequence[Accuracy],
    examples: Sequence[Example],
    machine: Mapping[str, str],
) -> Path:
    """Write report.md and loss_curve.png into a folder and return report.md's path.

    Args:
        folder: the run folder; files of these two names in it are replaced.
        title: the report's heading.
        curves: the two logs by the name of what made them.
        accuracies: exact match on the held-out problems, the base model first.
        examples: held-out questions with every model's answer.
        machine: versions and hardware, one line each.

    Raises:
        UserError: if the two logs do not have the same steps.
    """
    first, second = curves
    comparison = compare_logs(curves[first], curves[second])
    parts = [
        f"# {escape(title)}",
        verdict(comparison, (first, second)),
        f"![Loss of both runs and their difference]({LOSS_CURVE})",
        "## Exact match on held-out problems",
        markdown_table(("model", "correct", "accuracy", "scored by"), map(_accuracy_cells, accuracies)),
        "## Held-out questions",
        *map(_example, examples),
        "## Loss and gradient norm by step",
        markdown_table(_headers(first, second), _step_cells(comparison)),
        "## Where this was run",
        markdown_table(("what", "value"), machine.items()),
    ]
    loss_curve_png(folder / LOSS_CURVE, curves)
    with new_file(folder / REPORT) as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder / REPORT


def _headers(first: str, second: str) -> tuple[str, ...]:
    losses = (f"loss {first}", f"loss {second}", "difference")
    return ("step", *losses, f"grad norm {first}", f"grad norm {second}", "difference")


def _step_cells(comparison: LogComparison) -> Iterator[tuple[str, ...]]:
    for pair in comparison.pairs:
        yield (
            str(pair.first.step),
            *(f"{pair.first.loss:.6f}", f"{pair.second.loss:.6f}", f"{pair.loss_difference:+.1e}"),
            *(
                f"{pair.first.grad_norm:.6f}",
                f"{pair.second.grad_norm:.6f}",
                f"{pair.grad_norm_difference:+.1e}",
            ),
        )


def _accuracy_cells(accuracy: Accuracy) -> tuple[str, ...]:
    correct = f"{accuracy.correct} of {accuracy.total}"
    return accuracy.model, correct, f"{accuracy.correct / accuracy.total:.1%}", accuracy.note


def _example(example: Example) -> str:
    answers = [("gold", example.gold), *example.answers.items()]
    return f"**{escape(example.question)}**\n\n{markdown_table(('model', 'answer'), answers)}"


def _largest(differences: Iterable[float]) -> float:
    # max() keeps or loses a nan depending on where it stands.
    absolute = [abs(difference) for difference in differences]
    return math.nan if any(map(math.isnan, absolute)) else max(absolute)


def _span(steps: Sequence[int]) -> str:
    return f"{len(steps)} steps ({steps[0]} to {steps[-1]})" if steps else "none"
