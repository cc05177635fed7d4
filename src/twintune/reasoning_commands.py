"""`twintune reason`: fill in the reasoning of a contest's questions, by an endpoint or a local model."""

from pathlib import Path
from typing import Annotated

import typer

from twintune.command_arguments import DeviceFlag, Overrides, RecipeFile, recipe_with

INCOMPLETE = 1


def reason(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .jsonl file to write.", show_default="data.train")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Of a local model: auto, cuda or ascend.", show_default="recipe's")
    ] = None,
    device: DeviceFlag = None,
) -> None:
    """Write the reasoning that questions lack; exit code 1 if some still do. Call it again to go on."""
    from twintune.reasoning.run import run_reasoning

    done = run_reasoning(recipe_with(recipe, overrides, {"backend.name": backend, "backend.device": device}), output)
    states = done.states
    print(f"read {done.read} questions: filled {done.filled}, failed {done.failures}")
    print(
        f"of the filled, {states['asked']} were asked for, {states['cached']} came from the cache, "
        f"{states['present']} had a reasoning, {states['without']} are kept without: no answer ended in the gold one"
    )
    print(f"filled: {done.output}")
    if done.failed is not None:
        print(f"failed, with the reason: {done.failed}")
        raise typer.Exit(INCOMPLETE)
