"""The corpus of bad data, each entry with words of the one line that must come of it.

for case in cases(make_corpus(tmp_path)):
    ...  # case.entry goes where a user names data; case.words must be in what is told
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "data" / "bad"
SCRIPT = Path(__file__).parents[1] / "scripts" / "make_bad_data.py"
# What scripts/make_bad_data.py cannot make everywhere.
NOT_FOR_ROOT = ("forbidden.json", "forbidden_folder")
ON_LINUX = ("unreadable.json",)


class Case(NamedTuple):
    """One entry of data.train: a file, a folder or a glob.

    Attributes:
        name: as in expected.json.
        words: they must be in the one line.
    """

    name: str
    entry: str
    words: str


def expected() -> dict[str, str]:
    """The words by name, of all that this machine can make."""
    words: dict[str, str] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    absent = (*(NOT_FOR_ROOT if os.geteuid() == 0 else ()), *(() if Path("/proc/self/mem").exists() else ON_LINUX))
    return {name: sentence for name, sentence in words.items() if name not in absent}


def make_corpus(folder: Path) -> Path:
    """Put the whole corpus into a new folder below `folder`: 300 MB, to be removed after use."""
    corpus = folder / "bad"
    shutil.copytree(FOLDER, corpus)
    subprocess.run([sys.executable, str(SCRIPT), str(corpus)], check=True)
    return corpus


def cases(corpus: Path) -> list[Case]:
    """Every case of a corpus that make_corpus made."""
    return [Case(name, str(corpus / name), words) for name, words in expected().items()]
