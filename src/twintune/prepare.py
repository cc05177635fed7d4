"""Records to rows on disk, once for a recipe: MindRecord and Arrow with one manifest."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from twintune import __version__
from twintune.artifacts import (
    MANIFEST,
    cache_folder,
    new_file,
    new_folder,
    refuse_used_folder,
    sha256_file,
    sha256_json,
    write_json,
)
from twintune.backends import Name, missing_packages
from twintune.converters import arrow, mindrecord
from twintune.converters.records import to_conversations
from twintune.converters.rows import Row, make_row
from twintune.converters.templates import load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.converters.tokens import load_tokenizer, tokenizer_hash
from twintune.errors import UserError, raise_collected
from twintune.models import resolve_model
from twintune.prepared import ARROW, MINDRECORD, Prepared, Summary, open_prepared
from twintune.recipe import Recipe

ROW_FORMAT = 1  # raise it whenever the same recipe gives other rows
FORMATS: dict[Name, str] = {"cuda": ARROW, "ascend": MINDRECORD}


def prepare(recipe: Recipe, output_dir: Path) -> Prepared:
    """Write the rows of a recipe into a new folder, in the format of every installed backend.

    The folder holds rows.arrow and/or rows.mindrecord (with its .db), recipe.yaml and manifest.json. Its
    place is noted in the cache, so that find_or_prepare finds it.

    Raises:
        UserError: for every record, template, tokenizer or folder that breaks a rule; nothing is left behind.
    """
    refuse_used_folder(output_dir)
    formats = _installed_formats()
    tokenizer = _tokenizer(recipe)
    rows = make_rows(recipe, tokenizer)
    summary = _summarize(rows, fingerprint(recipe), tokenizer)
    with new_folder(output_dir) as aside:
        if ARROW in formats:
            arrow.write_rows(rows, aside / ARROW)
        if MINDRECORD in formats:
            mindrecord.write_rows(rows, aside / MINDRECORD)
        recipe.save(aside / "recipe.yaml")
        write_json(aside / MANIFEST, _manifest(recipe, summary, aside))
    _note_place(summary.fingerprint, formats, output_dir)
    return Prepared(output_dir, summary)


def find_or_prepare(recipe: Recipe) -> Prepared:
    """The rows of a recipe: from where prepare left them, from the cache, or prepared there now.

    Raises:
        UserError: what prepare and open_prepared raise.
    """
    identity = fingerprint(recipe)
    cached = _cache_place(identity, _installed_formats())
    note = cached.with_suffix(".path")
    if note.is_file():
        elsewhere = Path(note.read_text(encoding="utf-8").strip())
        if (elsewhere / MANIFEST).is_file():
            prepared = open_prepared(elsewhere)
            if prepared.summary.fingerprint == identity:
                return prepared
    return open_prepared(cached) if (cached / MANIFEST).is_file() else prepare(recipe, cached)


def fingerprint(recipe: Recipe) -> str:
    """The sha256 of everything that decides the rows: the same on every machine, wherever the files lie."""
    if not recipe.data.train.is_file():
        raise UserError(f"{recipe.data.train}: data.train must be a file that exists, got nothing there")
    return sha256_json(
        {
            "row_format": ROW_FORMAT,
            "data": sha256_file(recipe.data.train),
            "tokenizer": tokenizer_hash(resolve_model(recipe.model)),
            "template": recipe.data.template,
            "system": recipe.data.system,
            "cutoff_len": recipe.data.cutoff_len,
            "pad_token": recipe.model.pad_token,
        }
    )


def make_rows(recipe: Recipe, tokenizer: Tokenizer) -> list[Row]:
    """The rows of a recipe, in the order of its records.

    Raises:
        UserError: for every record that breaks a rule, all at once.
    """
    template = load_template(recipe.data.template, tokenizer, recipe.data.system)
    rows, problems = [], []
    for number, conversation in enumerate(to_conversations(recipe.data.train), 1):
        try:
            segments = template.segments(conversation)
            rows.append(make_row(segments, tokenizer, template.add_special_tokens, recipe.data.cutoff_len))
        except UserError as error:
            problems.append(f"{recipe.data.train}: row {number}: {error}")
    raise_collected(problems)
    return rows


def _tokenizer(recipe: Recipe) -> Tokenizer:
    model = recipe.model
    return load_tokenizer(resolve_model(model), model.pad_token, model.trust_remote_code)


def _installed_formats() -> tuple[str, ...]:
    formats = tuple(file for backend, file in FORMATS.items() if not missing_packages(backend))
    if not formats:
        raise UserError(
            "prepare must know a backend that will read the rows, got none installed; "
            "run: pip install 'twintune[cuda]' or 'twintune[ascend]'"
        )
    return formats


def _summarize(rows: list[Row], identity: str, tokenizer: Tokenizer) -> Summary:
    lengths = [len(row.input_ids) for row in rows]
    return Summary(
        fingerprint=identity,
        count=len(rows),
        row_length=max(lengths),
        tokens=sum(lengths),
        trained_tokens=sum(row.trained_tokens for row in rows),
        cut_rows=sum(row.cut for row in rows),
        largest_token_id=max(int(row.input_ids.max()) for row in rows),
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad,
    )


def _manifest(recipe: Recipe, summary: Summary, folder: Path) -> dict[str, Any]:
    return {
        "twintune": __version__,
        "row_format": ROW_FORMAT,
        "rows": asdict(summary),
        "template": recipe.data.template,
        "system": recipe.data.system,
        "cutoff_len": recipe.data.cutoff_len,
        "data_sha256": sha256_file(recipe.data.train),
        "tokenizer_sha256": tokenizer_hash(resolve_model(recipe.model)),
        "sha256": {file.name: sha256_file(file) for file in sorted(folder.iterdir())},
    }


def _cache_place(identity: str, formats: tuple[str, ...]) -> Path:
    """One place for each set of formats: rows made before a backend was installed lack its file."""
    names = "+".join(file.removeprefix("rows.") for file in formats)
    return cache_folder() / "prepared" / identity / names


def _note_place(identity: str, formats: tuple[str, ...], output_dir: Path) -> None:
    with new_file(_cache_place(identity, formats).with_suffix(".path")) as aside:
        aside.write_text(f"{output_dir.resolve()}\n", encoding="utf-8")
