"""Folders and files that are whole or absent: written aside, then renamed, and known by their sha256."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from twintune.errors import UserError

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"  # the resolved recipe, beside whatever it made
SEAL = "sha256_of_the_rest"
FLOAT = "tag:yaml.org,2002:float"
# YAML 1.1, and so PyYAML, reads 1e-4 as a string (it wants 1.0e-4); nobody means the string.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


_Loader.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The sha256 of a JSON value in its one canonical spelling (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with new_file(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the sha256 of itself in it, so that any changed byte is noticed."""
    write_json(path, value | {SEAL: sha256_json(value)})


def read_sealed(path: Path, remedy: str = "prepare the rows again") -> dict[str, Any]:
    """Read what write_sealed wrote.

    Raises:
        UserError: if it is not byte for byte what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value: dict[str, Any] = json.loads(text)
        seal = value.pop(SEAL)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: must be a manifest written by twintune, got: {error!r}; {remedy}") from None
    written = json.dumps(value | {SEAL: seal}, indent=2, ensure_ascii=False) + "\n"
    if seal != sha256_json(value) or text != written:
        raise UserError(f"{path}: must be as twintune wrote it, got one that was changed; {remedy}")
    return value


def changed_files(folder: Path, files: Mapping[str, str], remedy: str = "prepare the rows again") -> Iterable[str]:
    """A sentence for each of `files`, sha256 by name, that is missing in a folder or has another sha256."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: must be there, as its manifest says, got nothing; {remedy}"
        elif (actual := sha256_file(path)) != expected:
            yield f"{path}: must have sha256 {expected}, as its manifest says, got {actual}; {remedy}"


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, with 1e-4 a number as in YAML 1.2.

    Raises:
        yaml.YAMLError: for what is no YAML.
    """
    return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader


def write_yaml(path: Path, value: Any) -> None:
    """Write a YAML file whole or not at all, keys in their given order; parse_yaml gives the same back."""
    with new_file(path) as aside:
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        aside.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write; it takes the name of `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, mark: str | None = None) -> Iterator[Path]:
    """Give a folder beside `path` to fill; it takes the name of `path` only if the block succeeds.

    Args:
        path: the folder to make.
        mark: in the name of the folder beside it, where only one process at a time has this mark: what a
            killed one left is then found and removed by the next.

    Raises:
        UserError: if `path` exists and holds anything.
    """
    refuse_used_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if mark is None:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    else:
        aside = path.with_name(f".{path.name}.{mark}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    try:
        yield aside
        # MindSpore and safetensors keep their files to their owner: what is handed on is for others too.
        for path_within in (aside, *aside.rglob("*")):
            path_within.chmod(0o755 if path_within.is_dir() else 0o644)
        if path.exists():
            path.rmdir()
        aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_used_folder(path: Path) -> None:
    """Raise UserError if `path` is a file, or a folder with something in it."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise UserError(
            f"{path}: --output-dir must be a new or empty folder, got one that is in use; "
            "name another folder or delete this one"
        )


def cache_folder() -> Path:
    """Where converted base weights and prepared rows are kept: $TWINTUNE_CACHE or ~/.cache/twintune."""
    return Path(os.environ.get("TWINTUNE_CACHE") or Path.home() / ".cache" / "twintune")
