"""Arguments that several commands take, spelled once, and the recipe that they give."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from twintune.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values laid over the recipe's.", show_default=False),
]
BackendFlag = Annotated[str | None, typer.Option("--backend", help="auto, cuda or ascend.", show_default="recipe's")]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or npu.", show_default="recipe's")]


def recipe_with(path: Path, overrides: list[str] | None, flags: dict[str, str | None]) -> "Recipe":
    """The recipe with overrides and flags, by the key they set, in it; flags are the last word."""
    from twintune.recipe import load_recipe

    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return load_recipe(path, [*(overrides or []), *given])
