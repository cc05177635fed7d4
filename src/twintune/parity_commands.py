"""`twintune parity`: record on one machine, compare on another, name the first difference.

Exit codes: 0 the same job, 1 not the same job, 2 something that the user can mend.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twintune.command_arguments import DeviceFlag, Overrides, RecipeFile, recipe_with

if TYPE_CHECKING:
    from twintune.parity.bundle import Bundle
    from twintune.parity.record import Settings

parity_app = typer.Typer(help="Show that two runs are the same job, or name what differs.", no_args_is_help=True)

DIFFERENT = 1
BACKENDS = ("cuda", "ascend")

OutputFlag = Annotated[Path, typer.Option("--output", "-o", help="A new folder.")]
StepsFlag = Annotated[int, typer.Option(min=1, help="Optimizer steps to train, of the whole schedule.")]
PromptsFlag = Annotated[int, typer.Option(min=1, help="Conversations to answer.")]
AllFlag = Annotated[bool, typer.Option("--all", help="Keep every row, position and matrix, whatever the size.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")]


@parity_app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: OutputFlag = Path("parity"),
    steps: StepsFlag = 50,
    prompts: PromptsFlag = 4,
    everything: AllFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Record both backends on this machine, each with the other's adapter too, and compare them."""
    from twintune.parity.cross import cross
    from twintune.parity.record import record

    settings = _settings(steps, prompts, everything)
    recipes = [recipe_with(recipe, overrides, {"backend.name": backend}) for backend in BACKENDS]
    first = record(recipes[0], output / BACKENDS[0], settings)
    second = record(recipes[1], output / BACKENDS[1], settings, first)
    _judge(cross(recipes[0], first, second), second, output, as_json)


@parity_app.command()
def record(
    recipe: RecipeFile,
    output: OutputFlag,
    backend: Annotated[str, typer.Option("--backend", help="auto, cuda or ascend.")],
    overrides: Overrides = None,
    device: DeviceFlag = None,
    peer: Annotated[
        Path | None, typer.Option(help="The other side's bundle: its adapter is measured here too.", show_default=False)
    ] = None,
    steps: StepsFlag = 50,
    prompts: PromptsFlag = 4,
    everything: AllFlag = False,
) -> None:
    """Run one side and write its bundle: a folder that any machine can compare."""
    from twintune.parity.bundle import open_bundle
    from twintune.parity.record import record as record_side

    other = None if peer is None else open_bundle(peer)
    loaded = recipe_with(recipe, overrides, {"backend.name": backend, "backend.device": device})
    bundle = record_side(loaded, output, _settings(steps, prompts, everything), other)
    _print_bundle(bundle)


@parity_app.command()
def cross(
    recipe: RecipeFile,
    bundle: Annotated[Path, typer.Argument(help="Recorded on this machine.")],
    peer: Annotated[Path, typer.Argument(help="The other side's.")],
    overrides: Overrides = None,
    device: DeviceFlag = None,
) -> None:
    """Add to a bundle what its backend computes with the other side's adapter."""
    from twintune.parity.bundle import open_bundle
    from twintune.parity.cross import cross as cross_load

    mine = open_bundle(bundle)
    loaded = recipe_with(recipe, overrides, {"backend.name": mine.facts["backend"], "backend.device": device})
    _print_bundle(cross_load(loaded, mine, open_bundle(peer)))


@parity_app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A bundle.")],
    second: Annotated[Path, typer.Argument(help="Another; differences are second minus first.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the reports here.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare two bundles; no framework is needed. Exit code 0: the same job; 1: not the same job."""
    from twintune.parity.bundle import open_bundle

    _judge(open_bundle(first), open_bundle(second), output, as_json)


def _settings(steps: int, prompts: int, everything: bool) -> "Settings":
    from twintune.parity.record import Settings

    return Settings(steps, prompts, everything)


def _print_bundle(bundle: "Bundle") -> None:
    size = sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
    print(f"bundle: {bundle.folder} ({bundle.facts['backend']} on {bundle.facts['device']}, {size / 2**20:.1f} MiB)")
    for problem in bundle.facts.get("training_failed", ()):
        print(f"training failed: {problem}")


def _judge(first: "Bundle", second: "Bundle", output: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from twintune.parity.ladder import compare as climb
    from twintune.parity.ladder import write_msprobe_for
    from twintune.parity.reports import write_reports
    from twintune.parity.terminal import print_verdict
    from twintune.parity.verdict_json import verdict_json
    from twintune.parity.wording import outcome

    verdict = climb(first, second)
    if as_json:
        print(verdict_json(verdict), end="")
    else:
        print_verdict(verdict, Console(soft_wrap=True))
    if output is not None:
        written = write_reports(verdict, output)
        inside = write_msprobe_for(first, second, verdict, output / "msprobe")
        if not as_json:
            for path in inside[:1]:
                print(f"to look inside the first stage that differs: {path.parent / 'README.md'}")
            print(f"reports: {', '.join(path.name for path in written)} in {output}")
    if outcome(verdict) != "same":
        raise typer.Exit(DIFFERENT)
