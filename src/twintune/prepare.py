"""Records to rows on disk, once for a recipe: MindRecord and Arrow with one manifest.

The rows are made in parts (twintune.parts), by several processes, and put together (twintune.assembly). Several
machines make a shard of the parts each (twintune.shards); what comes out is the same, byte for byte.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from twintune.artifacts import MANIFEST, cache_folder, new_file, refuse_used_folder
from twintune.assembly import Made, assemble
from twintune.backends import Name, missing_packages
from twintune.errors import UserError
from twintune.origin import Origin, load_origin
from twintune.parts import Shard, build_parts, part_folder
from twintune.prepared import ARROW, MINDRECORD, Prepared, open_prepared
from twintune.recipe import Recipe

FORMATS: dict[Name, str] = {"cuda": ARROW, "ascend": MINDRECORD}
WHOLE = Shard(1, 1)


def prepare(recipe: Recipe, output_dir: Path) -> Prepared:
    """Write the rows of a recipe into a new folder, in the format of every installed backend.

    The folder holds rows.arrow and/or rows.mindrecord (with its .db), validation.* where data.val_size asks
    for it, conversations.arrow, rejected.jsonl, recipe.yaml and manifest.json. Its place is noted in the
    cache, so that find_or_prepare finds it. If it is killed, the same command goes on where it was.

    Raises:
        UserError: for files, templates, tokenizers or folders that break a rule, or too many rejected
            records; nothing is left behind.
    """
    return _prepare(recipe, load_origin(recipe), output_dir)


def find_or_prepare(recipe: Recipe, origin: Origin | None = None) -> Prepared:
    """The rows of a recipe: from where prepare left them, from the cache, or prepared there now.

    `origin` is the recipe's, where it is loaded already.

    Raises:
        UserError: what prepare and open_prepared raise.
    """
    origin = origin or load_origin(recipe)
    cached = _cache_place(origin.fingerprint, installed_formats())
    note = cached.with_suffix(".path")
    if note.is_file():
        elsewhere = Path(note.read_text(encoding="utf-8").strip())
        if (elsewhere / MANIFEST).is_file():
            prepared = open_prepared(elsewhere)
            if prepared.summary.fingerprint == origin.fingerprint:
                return prepared
    return open_prepared(cached) if (cached / MANIFEST).is_file() else _prepare(recipe, origin, cached)


def _prepare(recipe: Recipe, origin: Origin, output_dir: Path) -> Prepared:
    refuse_used_folder(output_dir)
    formats = installed_formats()
    with parts_folder(origin.fingerprint) as folder:
        count = build_parts(origin.items(), origin.maker, folder, WHOLE)
        parts = [part_folder(folder, number) for number in range(count)]
        paths = [str(source.path) for source in origin.sources]
        prepared = assemble(parts, recipe, Made.by(origin), formats, output_dir, paths)
    note_place(prepared, formats)
    return prepared


@contextmanager
def parts_folder(fingerprint: str) -> Iterator[Path]:
    """The folder in the cache where the parts of a recipe are made, by one process at a time.

    It is removed in the end, and after an error; a process that is killed leaves its parts to the next.
    """
    folder = cache_folder() / "parts" / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        try:
            yield folder
        except KeyboardInterrupt:
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)


def installed_formats() -> tuple[str, ...]:
    """The row files that the installed backends read.

    Raises:
        UserError: if no backend is installed.
    """
    formats = tuple(file for backend, file in FORMATS.items() if not missing_packages(backend))
    if not formats:
        raise UserError(
            "prepare must know a backend that will read the rows, got none installed; "
            "run: pip install 'twintune[cuda]' or 'twintune[ascend]'"
        )
    return formats


def note_place(prepared: Prepared, formats: tuple[str, ...]) -> None:
    """Note where rows lie, so that find_or_prepare finds them."""
    place = _cache_place(prepared.summary.fingerprint, formats)
    if prepared.folder == place:
        return
    with new_file(place.with_suffix(".path")) as aside:
        aside.write_text(f"{prepared.folder.resolve()}\n", encoding="utf-8")


def _cache_place(fingerprint: str, formats: tuple[str, ...]) -> Path:
    """One place for each set of formats: rows made before a backend was installed lack its file."""
    names = "+".join(file.removeprefix("rows.") for file in formats)
    return cache_folder() / "prepared" / fingerprint / names
