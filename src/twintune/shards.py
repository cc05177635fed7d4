"""Preparing on many machines: each makes a shard of the parts, one puts them together."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from twintune.artifacts import (
    MANIFEST,
    RECIPE,
    changed_files,
    new_folder,
    read_sealed,
    refuse_used_folder,
    sha256_file,
    write_sealed,
)
from twintune.assembly import Made, assemble
from twintune.errors import UserError, raise_collected
from twintune.origin import load_origin
from twintune.parts import Shard, build_parts, part_folder
from twintune.prepare import installed_formats, note_place, parts_folder
from twintune.prepared import Prepared
from twintune.recipe import Recipe, load_recipe


def parse_shard(text: str) -> Shard:
    """`2/8` to the second of eight shards.

    Raises:
        UserError: if it is none.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {text!r}")
    return Shard(int(index), int(count))


def prepare_shard(recipe: Recipe, shard: Shard, output_dir: Path) -> Path:
    """Make one shard of a recipe's parts in a new folder, for merge_shards to put together with the others.

    Raises:
        UserError: as prepare; the share of rejected records is judged when the shards are merged.
    """
    refuse_used_folder(output_dir)
    origin = load_origin(recipe)
    with parts_folder(origin.fingerprint) as folder:
        count = build_parts(origin.items(), origin.maker, folder, shard)
        numbers = [number for number in range(count) if shard.has(number)]
        with new_folder(output_dir, origin.fingerprint[:16]) as aside:
            for number in numbers:
                shutil.copytree(part_folder(folder, number), part_folder(aside, number))
            recipe.save(aside / RECIPE)
            files = (file for file in sorted(aside.rglob("*")) if file.is_file())
            manifest = {
                "shard": [shard.index, shard.count],
                "parts": count,
                "made": asdict(Made.by(origin)),
                "sha256": {str(file.relative_to(aside)): sha256_file(file) for file in files},
            }
            write_sealed(aside / MANIFEST, manifest)
    return output_dir


def merge_shards(folders: Sequence[Path], output_dir: Path) -> Prepared:
    """Put all shards of one recipe together: what prepare would have written, byte for byte.

    Raises:
        UserError: for a shard that is missing, given twice, damaged or of another recipe, and for too many
            rejected records; nothing is left behind.
    """
    refuse_used_folder(output_dir)
    manifests = {folder: read_sealed(folder / MANIFEST) for folder in folders}
    raise_collected(_faults(manifests))
    raise_collected(fault for folder in folders for fault in changed_files(folder, manifests[folder]["sha256"]))
    first = manifests[folders[0]]
    by_index = {manifest["shard"][0] - 1: folder for folder, manifest in manifests.items()}
    parts = [part_folder(by_index[number % len(folders)], number) for number in range(first["parts"])]
    try:
        made = TypeAdapter(Made).validate_python(first["made"])
    except ValidationError as error:
        raise UserError(f"{folders[0] / MANIFEST}: must be of this version of twintune, got: {error!r}") from None
    formats = installed_formats()
    prepared = assemble(parts, load_recipe(folders[0] / RECIPE), made, formats, output_dir)
    note_place(prepared, formats)
    return prepared


def _faults(manifests: dict[Path, dict[str, object]]) -> list[str]:
    """What is wrong with a set of shards, a sentence each."""
    (first_folder, first), *others = manifests.items()
    faults = []
    if "shard" not in first:
        return [f"{first_folder}: must be a shard made by twintune prepare --shard, got another manifest"]
    wanted = Shard(*first["shard"])  # type: ignore[misc]
    for folder, manifest in others:
        if manifest.get("made") != first["made"] or manifest.get("parts") != first["parts"]:
            faults.append(f"{folder}: must be a shard of the same recipe and data as {first_folder}, got another's")
    given = sorted(json.dumps(manifest.get("shard")) for manifest in manifests.values())
    expected = sorted(json.dumps([index + 1, wanted.count]) for index in range(wanted.count))
    if given != expected:
        faults.append(f"the shards must be {', '.join(expected)} of [index, count], got {', '.join(given)}")
    return faults
