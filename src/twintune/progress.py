"""What a training run tells: one line a step in log.jsonl, a progress bar on a terminal, lines elsewhere."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from twintune.backends import Evaluation, Step

LINES = 20  # a run that is not watched on a terminal prints about so many


class Progress:
    """A Watcher that writes the log and shows step, loss, trained tokens a second and the time left.

    Args:
        log: the file of one JSON object a step.
        steps: how many there will be.
    """

    def __init__(self, log: Path, steps: int) -> None:
        self.steps = steps
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
        self.task = self.bar.add_task("starting", total=steps, figures="")
        self.log = log.open("w", encoding="utf-8")
        self.began = time.perf_counter()
        self.first_step_ended = 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.log.close()

    def status(self, text: str) -> None:
        """Show the phase that began."""
        if self.console.is_terminal:
            self.bar.update(self.task, description=text)
        else:
            self.console.print(f"{time.perf_counter() - self.began:7.1f} s  {text}", soft_wrap=True)

    def step(self, step: Step) -> None:
        """Log a step and show it."""
        self.log.write(json.dumps(asdict(step)) + "\n")
        self.log.flush()
        rate = step.tokens / step.seconds
        figures = f"loss {step.loss:.4f}  {rate:,.0f} trained tokens/s"
        self.bar.update(self.task, completed=step.step, description="training", figures=figures)
        elapsed = time.perf_counter() - self.began
        if step.step == 1:
            self.first_step_ended = elapsed
        every = max(1, self.steps // LINES)
        if not self.console.is_terminal and (step.step % every == 0 or step.step in (1, self.steps)):
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
        if step == 1:
            return ""
        seconds = (elapsed - self.first_step_ended) / (step - 1) * (self.steps - step)
        return f"  {seconds:,.0f} s left"
