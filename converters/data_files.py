"""Which files an entry of `data.train` names: a file, a folder or a glob."""

import glob
from pathlib import Path

from twintune.errors import UserError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
DESCRIPTION = "dataset_info.json"  # LLaMA-Factory's: it describes data and holds none
ABOUT = ("readme", "license", "licence")  # in names of files that are about the data


def find_files(entry: str) -> list[Path]:
    """The data files that an entry names, sorted by name.

    Of a folder, every data file directly in it; hidden files and files named README or LICENSE are passed over,
    anything else is refused by name. dataset_info.json is never data, unless it is the entry itself. A path that
    exists is not taken for a glob.

    Raises:
        UserError: if nothing is there or it cannot be read, for a folder without data or with other things in
            it, and for a glob that matches nothing, a folder, or one file under two names.
    """
    path = Path(entry)
    try:
        path.stat()
    except FileNotFoundError:
        if glob.has_magic(entry):
            return _matching(entry)
        raise UserError(f"{entry}: the data must be a file, a folder or a glob, got nothing there") from None
    except OSError as error:  # a loop of symbolic links, a file where a folder should be, no permission
        raise UserError(f"{entry}: the data must be a readable file or folder, got: {error.strerror}") from None
    return _files_in(path) if path.is_dir() else [path]


def _files_in(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if not _is_about(path))
    except OSError as error:
        raise UserError(f"{folder}: the data must be a readable folder, got: {error.strerror}") from None
    if strange := [path.name for path in found if path.suffix.lower() not in SUFFIXES or path.is_dir()]:
        raise UserError(
            f"{folder}: a data folder must hold {', '.join(SUFFIXES)} files only, got {', '.join(strange)}; "
            f"move what is no data, or name the files by a glob such as {folder / '*.jsonl'}"
        )
    if not found:
        raise UserError(f"{folder}: a data folder must hold {', '.join(SUFFIXES)} files, got none")
    return found


def _is_about(path: Path) -> bool:
    name = path.name.lower()
    return name == DESCRIPTION or name.startswith(".") or any(word in name for word in ABOUT)


def _matching(pattern: str) -> list[Path]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
    found = [path for name in matches if (path := Path(name)).name != DESCRIPTION]
    if not found:
        raise UserError(f"{pattern}: the glob must match at least one file, got none")
    names: dict[Path, Path] = {}
    for path in found:
        if path.is_dir():
            raise UserError(f"{pattern}: the glob must match files only, got the folder {path}; write {pattern}/*")
        other = names.setdefault(_real(path), path)
        if other is not path:
            raise UserError(f"{pattern}: the glob must match each file once, got {other} and {path}, which are one")
    return found


def _real(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: how 3.11 tells a loop of symbolic links
        raise UserError(f"{path}: the data must be a readable file, got a broken symbolic link or a loop") from None
