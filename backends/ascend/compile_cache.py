"""The graph of a training step, kept for the next run of the same job: compiling it takes longest of all at a start.

MindSpore 2.9.0 numbers the graphs of a process and loads the kept one of the same number, whatever the network is by
now: the learning rates, the LoRA scaling, the clipping and even the row length of another job came back (measured). It
compares one thing, the hash of the script that was started. So what decides the graph stands in a file that MindSpore
takes for that script, and graphs lie in folders by the hash of that file.
"""

import atexit
import dataclasses
import importlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mindspore.graph import api

from twintune.artifacts import (
    MANIFEST,
    cache_folder,
    changed_files,
    new_folder,
    read_sealed,
    sha256_file,
    sha256_json,
    write_json,
    write_sealed,
)
from twintune.backends.ascend.least_used import make_room, used
from twintune.backends.job import TrainJob
from twintune.errors import UserError

ENABLE, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"  # MindSpore's environment variables
MOST = 2**30  # bytes of kept graphs: one of 30 layers has 20 MiB
DECIDES = "graph.json"  # MindSpore parses its script, and JSON is an expression of Python's
# Of the configuration and of the job: places, and what is done between steps.
NOT_IN_THE_GRAPH = {"output_dir", "train_dataset_task", "callbacks"}
NOT_IN_THE_STEP = {
    *("model", "rows", "order", "initial_adapter", "output_dir", "resume_from", "steps_done", "overrides"),
    *("snapshot_steps", "evaluation_steps", "evaluation_batch", "checkpoint_steps", "save_only_model"),
}
SOURCES = ("twintune", "twintune.converters", "twintune.backends", "mindformers", "mindpet")
_folders: list[Path] = []  # of this process; MindSpore asks for its folder only once


@contextmanager
def kept_graph(job: TrainJob, settings: Mapping[str, Any], shapes: list[list[int]]) -> Iterator["KeptGraph"]:
    """Let MindSpore load a job's graph, or keep it, until the block ends or KeptGraph.compiled is called.

    Args:
        job: what is trained.
        settings: MindFormers' whole configuration; the network is a function of both and of the sources.
        shapes: of the columns of a batch.
    """
    graph = KeptGraph(what_decides(job, settings, shapes), job.rank.world_size)
    try:
        yield graph
    finally:
        graph.end()


def what_decides(job: TrainJob, settings: Mapping[str, Any], shapes: list[list[int]]) -> dict[str, Any]:
    """All that a training graph is made of: settings without paths, sources, versions, MindSpore's switches."""
    named = {name: value for name, value in settings.items() if name not in NOT_IN_THE_GRAPH}
    named["train_dataset"] = {key: value for key, value in settings["train_dataset"].items() if key != "data_loader"}
    return {
        "settings": named,
        "job": {
            one.name: _plain(getattr(job, one.name))
            for one in dataclasses.fields(job)
            if one.name not in NOT_IN_THE_STEP
        },
        "shapes": shapes,
        "sources": {name: _sources_sha256(name) for name in SOURCES},
        "versions": {name: version(name) for name in ("mindspore", "mindformers", "mindpet", "twintune")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "environment": {name: value for name, value in os.environ.items() if _switches_mindspore(name)},
    }


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _sources_sha256(package: str) -> str:
    """Of every Python file of a package."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    return sha256_json({str(file.relative_to(folder)): sha256_file(file) for file in folder.rglob("*.py")})


def _switches_mindspore(variable: str) -> bool:
    told_apart = (ENABLE, PATH, "MS_SCHED_HOST", "MS_SCHED_PORT")  # where, not what
    return variable.startswith(("MS_", "ENABLE_", "ASCEND_")) and variable not in told_apart


class KeptGraph:
    """The graph of one job in the cache folder; MindSpore works on a copy, so that concurrent runs share no file.

    Only the first run of a process has one, as MindSpore asks for its folder once, and no run of several ranks: a rank
    that loads would wait in a collective for one that compiles, and give up. MS_COMPILER_CACHE_ENABLE=0 in the
    environment, MindSpore's own switch, keeps and loads none.

    Attributes:
        told: what is about to be done, and why.
    """

    def __init__(self, decides: Mapping[str, Any], world_size: int) -> None:
        self._folder = cache_folder() / "graphs" / sha256_json(decides)
        self._copy: Path | None = None
        self.told = "compiling the graph (minutes for a large model; the first step waits for it"
        if os.environ.get(ENABLE) == "0":
            self.told += f"; {ENABLE}=0: it is not kept)"
        elif world_size > 1:
            self.told += "; not kept with several ranks)"
        elif _folders:
            self.told += "; not kept: MindSpore keeps those of a process' first run alone)"
        else:
            loaded = self._loaded()
            self._copy = loaded or _own_folder()
            _begin(self._copy, decides)
            if loaded:
                self.told = f"loading the graph that a run like this one compiled, {self._folder}"
            else:
                self.told += f"; kept for the next run like it in {self._folder}{_room(self._folder.parent)})"

    def _loaded(self) -> Path | None:
        """A copy of the kept graph, if there is one; another process may remove it meanwhile."""
        if not self._folder.is_dir():
            return None
        used(self._folder)
        copy = _own_folder()
        with suppress(OSError):
            shutil.copytree(self._folder, copy, dirs_exist_ok=True)
        return copy if _is_whole(copy) else None

    def compiled(self) -> None:
        """Keep the graph, once its first step is done."""
        if self._copy is not None and not _is_whole(self._folder) and any(self._copy.rglob("*.mindir")):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._publish(self._copy)
        self.end()

    def end(self) -> None:
        """No graph that MindSpore compiles from now on is kept or loaded."""
        if self._copy is not None:
            os.environ.pop(ENABLE, None)
            self._copy = None

    def _publish(self, copy: Path) -> None:
        try:
            with suppress(UserError), new_folder(self._folder) as aside:  # refused where another run was faster
                shutil.copytree(copy, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
                files = [file for file in aside.rglob("*") if file.is_file()]
                write_sealed(aside / MANIFEST, {str(file.relative_to(aside)): sha256_file(file) for file in files})
        except OSError:
            if not _is_whole(self._folder):
                raise


def _is_whole(folder: Path) -> bool:
    """Whether a folder has a graph, every byte as it was written."""
    try:
        return not any(changed_files(folder, read_sealed(folder / MANIFEST)))
    except (UserError, FileNotFoundError):  # another process may be removing it
        return False


def _room(cache: Path) -> str:
    """Make room for one more; a sentence if something had to go."""
    removed = make_room(cache, MOST)
    return f"; {removed} least recently used removed, as they took more than {MOST / 2**30:g} GiB" if removed else ""


def _own_folder() -> Path:
    """A folder of this process alone, until it ends."""
    folder = Path(mkdtemp(prefix="twintune-graph-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _begin(folder: Path, decides: Mapping[str, Any]) -> None:
    """Give MindSpore this folder, and what decides the graph as the script to compare."""
    _folders.append(folder)
    write_json(folder / DECIDES, decides)
    api.entry_script_path = str(folder / DECIDES)
    os.environ |= {ENABLE: "1", PATH: str(folder)}
