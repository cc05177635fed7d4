import re
from pathlib import Path

import pytest
import yaml

from twintune.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "yamls").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_says_what_it_means(path: Path) -> None:
    recipe = load_recipe(path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert recipe.train.per_device_train_batch_size == given["train"]["per_device_train_batch_size"]
    assert recipe.train.learning_rate == given["train"]["learning_rate"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_opens_with_the_command_that_runs_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    opening = text[: re.search(r"^[^#\n]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    commands = re.findall(r"^#\s+((?:twintune|bash scripts/)\S*.*)$", opening, re.MULTILINE)
    named = [found.group() for command in commands if (found := re.search(r"(?:scripts|yamls)/\S+", command))]
    assert named  # the others take what these made
    for name in named:
        assert (ROOT / name).is_file(), name
