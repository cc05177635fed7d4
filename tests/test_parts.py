"""Parts come out the same however the work is cut: by processes, kills or machines."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.tiny_tokenizers import save_sentencepiece_model
from twintune import parts
from twintune.artifacts import sha256_file
from twintune.backends import missing_packages
from twintune.errors import UserError
from twintune.prepare import prepare
from twintune.recipe import Recipe, load_recipe
from twintune.row_maker import Item, RowMaker
from twintune.shards import merge_shards, parse_shard, prepare_shard

pytestmark = pytest.mark.once

RECORDS = 30
# All is imported once and each prepare is a fork, killed as it opens, makes or renames its nth file.
PROGRAM = """
import os, signal, sys, traceback
from pathlib import Path
from twintune import parts
from twintune.prepare import prepare
from twintune.recipe import load_recipe

def kill_at(last):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "shutil.rmtree") and str(arguments[0]).startswith(here):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    return lambda: seen

def run(out, last):
    child = os.fork()
    if not child:
        try:
            os.environ["TWINTUNE_CACHE"] = f"{here}/cache-{out}"
            seen = kill_at(last)
            prepare(recipe, Path(here) / out)
            Path(f"{here}/events-{out}").write_text(str(seen()))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

here = str(Path.cwd())
parts.RECORDS = 30
recipe = load_recipe(Path("recipe.yaml"), ["data.preprocessing_num_workers=1"])
for module in sys.argv[1:]:
    __import__(module)
print("unbroken", run("unbroken", 0))
events = int(Path(f"{here}/events-unbroken").read_text())
for share in (0.1, 0.5, 0.8, 0.95):
    print(share, run(f"out-{share}", int(share * events)), run(f"out-{share}", 0))
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """200 records, parts of 30, two of the records bad, packed, a few for validation."""
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOG_v", "3")
    monkeypatch.setattr(parts, "RECORDS", RECORDS)
    save_sentencepiece_model(tmp_path / "model")
    records = [
        {"instruction": f"题目：{number} + 3?", "output": f"{number + 3}" * (1 + number % 9)} for number in range(200)
    ]
    records[17] = records[150] = {"instruction": "no output"}
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: ./model}\n"
        "data: {train: ./data.json, template: vicuna_v1.1, cutoff_len: 512, packing: true, val_size: 0.1}\n"
    )
    return load_recipe(tmp_path / "recipe.yaml")


def contents(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in folder.iterdir() if not file.name.endswith("recipe.yaml")}


def with_workers(recipe: Recipe, workers: int) -> Recipe:
    data = recipe.data.model_copy(update={"preprocessing_num_workers": workers})
    return recipe.model_copy(update={"data": data})


def test_processes_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    prepare(with_workers(recipe, 1), tmp_path / "one")
    prepare(with_workers(recipe, 2), tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    # The resolved recipe beside the rows says how many processes there were, and the manifest has its sha256.
    assert {name for name in one if one[name] != two[name]} <= {"manifest.json"}
    assert not list((tmp_path / "cache" / "parts").glob("*/"))


@pytest.mark.slow
def test_a_prepare_killed_at_any_moment_goes_on_where_it_was(recipe: Recipe, tmp_path: Path) -> None:
    """Killed as it opens, makes or renames a file: among its parts, while they are put together, near the end."""
    program = [sys.executable, "-c", PROGRAM, *([] if missing_packages("ascend") else ["mindspore.mindrecord"])]
    told = subprocess.run(program, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert told.splitlines()[0] == "unbroken 0"
    whole = contents(tmp_path / "unbroken")
    for share in (0.1, 0.5, 0.8, 0.95):
        assert f"{share} {-signal.SIGKILL} 0" in told.splitlines()
        assert contents(tmp_path / f"out-{share}") == whole
    assert not list(tmp_path.glob(".out*"))


def test_parts_that_are_there_are_not_made_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make_part = parts.make_part

    def watched(maker: RowMaker, items: Iterable[Item], folder: Path) -> None:
        if made.count("stop") == 0 and len(made) == 3:
            made.append("stop")
            raise KeyboardInterrupt
        made.append(folder.name)
        make_part(maker, items, folder)

    monkeypatch.setattr(parts, "make_part", watched)
    with pytest.raises(KeyboardInterrupt):
        prepare(with_workers(recipe, 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare(with_workers(recipe, 1), tmp_path / "out")
    made.remove("stop")
    assert made == [f"part-{number:06}" for number in range(7)]


def test_shards_of_many_machines_merge_to_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    recipe = with_workers(recipe, 1)
    whole = prepare(recipe, tmp_path / "whole")
    shards = [prepare_shard(recipe, parse_shard(f"{number}/3"), tmp_path / f"shard{number}") for number in (1, 2, 3)]
    merged = merge_shards([shards[2], shards[0], shards[1]], tmp_path / "merged")
    assert merged.summary == whole.summary
    assert contents(tmp_path / "whole") == contents(tmp_path / "merged")


def test_wrong_shards_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    recipe = with_workers(recipe, 1)
    one = prepare_shard(recipe, parse_shard("1/2"), tmp_path / "one")
    two = prepare_shard(recipe, parse_shard("2/2"), tmp_path / "two")
    with pytest.raises(UserError, match=r"the shards must be \[1, 2\], \[2, 2\] .*, got \[1, 2\]"):
        merge_shards([one], tmp_path / "out")
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cutoff_len": 300})})
    foreign = prepare_shard(other, parse_shard("2/2"), tmp_path / "foreign")
    with pytest.raises(UserError, match="foreign: must be a shard of the same recipe and data as"):
        merge_shards([one, foreign], tmp_path / "out")
    with pytest.raises(UserError, match="must be a shard made by twintune prepare --shard"):
        merge_shards([prepare(recipe, tmp_path / "whole").folder], tmp_path / "out")
    damaged = next(two.glob("part-*/train.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"train\.arrow: must have sha256"):
        merge_shards([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shard_must_be_one_of_them(text: str) -> None:
    with pytest.raises(UserError, match="--shard must be i/n"):
        parse_shard(text)
