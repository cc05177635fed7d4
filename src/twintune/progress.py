"""What a training run shows while it goes on: a progress bar on a terminal, lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from twintune.backends.job import Evaluation, Step
from twintune.step_cost import StepCost

LINES = 20  # a run that is not watched on a terminal prints about so many


class Progress:
    """A Watcher that shows step, loss, trained tokens a second, MFU where it is known, memory and the time left.

    Args:
        steps: how many there are in the whole run.
        measure: tells what a step that has just ended cost.
        steps_done: how many of them lie behind the checkpoint from which it goes on.
    """

    def __init__(self, steps: int, measure: Callable[[Step], StepCost], steps_done: int = 0) -> None:
        self.steps = steps
        self.measure = measure
        self.steps_done = steps_done
        self.console = Console(stderr=True)  # frameworks print to stdout, and --json must stay clean
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=steps, completed=steps_done, figures="")
        self.began = time.perf_counter()
        self.first_step_ended = 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def status(self, text: str) -> None:
        """Show the phase that began."""
        if self.console.is_terminal:
            self.bar.update(self.task, description=text)
        else:
            self.console.print(f"{time.perf_counter() - self.began:7.1f} s  {text}", soft_wrap=True)

    def step(self, step: Step) -> None:
        """Show a step."""
        cost = self.measure(step)
        mfu = "" if cost.mfu is None else f"  MFU {cost.mfu:.1%}"
        memory = f"{cost.peak_memory / 2**30:.1f} GiB"
        figures = f"loss {step.loss:.4f}  {cost.tokens_per_second:,.0f} trained tokens/s{mfu}  {memory}"
        self.bar.update(self.task, completed=step.step, description="training", figures=figures)
        elapsed = time.perf_counter() - self.began
        first = self.steps_done + 1
        if step.step == first:
            self.first_step_ended = elapsed
        every = max(1, self.steps // LINES)
        if not self.console.is_terminal and (step.step % every == 0 or step.step in (first, self.steps)):
            line = f"{elapsed:7.1f} s  step {step.step}/{self.steps}  {figures}{self._left(step.step, elapsed)}"
            self.console.print(line, soft_wrap=True)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Show an evaluation."""
        figures = f"evaluation loss {evaluation.loss:.4f}, perplexity {evaluation.perplexity:.3f}"
        self._say(f"step {evaluation.step}: {figures}")

    def saved(self, step: int) -> None:
        """Show that a checkpoint is whole."""
        self._say(f"step {step}: checkpoint saved")

    def _say(self, text: str) -> None:
        elapsed = time.perf_counter() - self.began
        self.console.print(f"{elapsed:7.1f} s  {text}", soft_wrap=True)

    def _left(self, step: int, elapsed: float) -> str:
        """The time left, from the steps after the first, which may have waited for a graph to compile."""
        after_first = step - self.steps_done - 1
        if not after_first:
            return ""
        seconds = (elapsed - self.first_step_ended) / after_first * (self.steps - step)
        return f"  {seconds:,.0f} s left"
