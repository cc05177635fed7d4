"""The README tells the truth: its recipe is the smallest one, its commands run, its Python too."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from tests.shipped_recipes import run
from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import missing_packages

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MISSING = [*missing_packages("ascend"), *missing_packages("cuda")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_recipe_shown_is_the_one_that_is_tested(tmp_path: Path) -> None:
    (shown,) = blocks("yaml")
    tested = write_smallest_recipe(tmp_path, weights=False)
    assert yaml.safe_load(shown) == yaml.safe_load(tested.read_text(encoding="utf-8"))


def test_every_command_is_of_a_known_kind() -> None:
    """twintune's are run below, the scripts by their own tests, installation by scripts/test.sh."""
    for command in commands():
        program, *arguments = shlex.split(command)
        if program == "bash":
            assert (ROOT / arguments[0]).is_file(), command
        else:
            assert program in ("twintune", "pip"), command


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs both backends, without {', '.join(MISSING)}")
def test_the_commands_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, so that the frameworks are imported once."""
    write_smallest_recipe(tmp_path, layers=1)
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    ran = [shlex.split(command) for command in commands() if command.startswith("twintune ")]
    assert len(ran) == 17
    for _, *arguments in ran:
        run(*arguments)
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    (python,) = blocks("python")
    program = python.replace('"smollm2-135m-instruct"', '"tiny-llama"').replace("runs/quickstart/ascend", "run")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    runpy.run_path(str(tmp_path / "program.py"))
