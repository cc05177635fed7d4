"""`twintune train`: one process, or as many as a launcher starts or has started."""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from twintune.command_arguments import BackendFlag, DeviceFlag, Overrides, RecipeFile, recipe_with
from twintune.errors import UserError

if TYPE_CHECKING:
    from twintune.backends import Machines
    from twintune.recipe import Recipe
    from twintune.together import Together
    from twintune.training_plan import Run


@dataclass(frozen=True)
class Asked:
    """What is to be done with a recipe: `output_dir` is None for a dry run without one."""

    output_dir: Path | None
    resume: bool
    dry_run: bool


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    backend: BackendFlag = None,
    device: DeviceFlag = None,
    output_dir: Annotated[Path | None, typer.Option(help="A new folder for the run.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output-dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes to start on this machine, one a device.", show_default=False)
    ] = None,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines, each with its own such command.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this machine.")] = 0,
    master: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of machine 0.", show_default="a free port here")
    ] = None,
) -> None:
    """Train the recipe's adapter; rows are prepared first if they are not there."""
    from twintune.artifacts import refuse_used_folder
    from twintune.backends.job import Rank
    from twintune.launch import choose_machines
    from twintune.together import Together

    if output_dir is None and not dry_run:
        raise UserError("command line: --output-dir must be given, got nothing; name a new folder for the run")
    if nproc is None and (nnodes > 1 or node_rank or master):
        raise UserError("command line: --nproc must be given with --nnodes, --node-rank or --master, got nothing")
    loaded = recipe_with(recipe, overrides, {"backend.name": backend, "backend.device": device})
    asked = Asked(output_dir, resume, dry_run)
    if nproc is None:
        _train_here(loaded, asked)
        return
    machines = choose_machines(nproc, nnodes, node_rank, master)
    if output_dir is not None and not resume:
        refuse_used_folder(output_dir)
    if dry_run:
        _train(loaded, asked, Together(Rank(world_size=nproc * nnodes), None))
        return
    flags = {"--backend": backend, "--device": device, "--output-dir": output_dir}
    given = [text for name, value in flags.items() if value is not None for text in (name, str(value))]
    command = ["-m", "twintune", "train", str(recipe), *(overrides or []), *given, *(["--resume"] if resume else [])]
    _start(loaded, command, machines)


def _start(recipe: "Recipe", command: list[str], machines: "Machines") -> None:
    """Start the processes; the rows are prepared before, so that no process waits for another's preparation."""
    from twintune.backends import choose_backend, load_backend
    from twintune.launch import launch
    from twintune.prepare import find_or_prepare

    name = choose_backend(recipe.backend.name).value
    find_or_prepare(recipe)
    print(f"{'ranks:':<22}{machines.nproc * machines.nnodes}, {machines.nproc} on this machine", flush=True)
    launch(load_backend(name), command, machines, dict(os.environ))


def _train_here(recipe: "Recipe", asked: Asked) -> None:
    """Train in this process, alone or with those that a launcher has started beside it."""
    from twintune.backends import choose_backend, load_backend
    from twintune.ranks import find_launched, set_meeting_place
    from twintune.together import Together

    launched = find_launched(os.environ)
    rank = launched.rank
    if launched.is_scheduler:
        load_backend("ascend").join(rank)
        return
    if rank.world_size == 1:
        _train(recipe, asked, Together(rank, None))
        return
    set_meeting_place(os.environ, launched)
    who = f"{rank.number} of {rank.world_size} in process {os.getpid()}"
    print(f"{'rank:':<22}{who}, started by {launched.launcher} ({launched.reason})", flush=True)
    together = Together(rank, load_backend(choose_backend(recipe.backend.name).value).join(rank))
    with together.one_voice():
        _train(recipe, asked, together)


def _train(recipe: "Recipe", asked: Asked, together: "Together") -> None:
    from twintune.run_report import write_run_report
    from twintune.training import run_training, train_beside

    with ExitStack() as stack:
        if together.rank.number:  # what belongs to no run folder goes away in the end
            own = Path(stack.enter_context(TemporaryDirectory(prefix="twintune-rank-")))
            train_beside(_decide_beside(recipe, asked, own, together))
            return
        run = _decide_first(recipe, asked, together)
        if asked.dry_run:
            for name, text in run.framework.plan(run.job).items():
                print(f"\n# {name}\n{text}", end="")
            return
        run_training(run)
    print(f"adapter: {run.job.output_dir / 'adapter'}")
    print(f"report: {write_run_report(run.job.output_dir)}")


def _decide_first(recipe: "Recipe", asked: Asked, together: "Together") -> "Run":
    """The run as rank 0 decides it, and prints it."""
    from twintune.artifacts import refuse_used_folder
    from twintune.plan_view import plan_lines
    from twintune.resuming import deciding_facts, go_on
    from twintune.training_plan import decide

    if asked.output_dir is not None and not asked.resume:
        refuse_used_folder(asked.output_dir)
    with together.one_machine_first():
        run = decide(recipe, asked.output_dir or Path("OUT"), together.rank)
    together.require_equal(deciding_facts(run))
    if asked.resume:
        run, sentence = go_on(run)
        print(f"{'resume:':<22}{sentence}")
    together.exchange({"steps_done": run.job.steps_done})
    for name, sentence in plan_lines(run):
        print(f"{name + ':':<22}{sentence}")
    sys.stdout.flush()
    return run


def _decide_beside(recipe: "Recipe", asked: Asked, own: Path, together: "Together") -> "Run":
    """The run as the other ranks decide it, with a folder of their own: it goes on where rank 0 does."""
    from twintune.resuming import deciding_facts, resumed_at
    from twintune.training_plan import decide

    with together.one_machine_first():
        run = decide(recipe, own, together.rank)
    together.require_equal(deciding_facts(run))
    steps_done = together.exchange({})[0]["steps_done"]
    return resumed_at(run, asked.output_dir, steps_done) if steps_done and asked.output_dir else run
