"""The command that writes a run's report anew."""

from pathlib import Path
from typing import Annotated

import typer

from twintune.command_arguments import Overrides


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of twintune train.")],
    overrides: Overrides = None,
) -> None:
    """Write report.md, report.html and the loss curve of a run, finished or killed."""
    from twintune.run_report import write_run_report

    print(f"report: {write_run_report(run, overrides or ())}")
