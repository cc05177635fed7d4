"""Parts to one prepared folder: the rows in each backend's format, and what is known of them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twintune import __version__
from twintune.artifacts import RECIPE, new_file, new_folder, sha256_file
from twintune.backends import Choice
from twintune.conversation_facts import Conversations, gather_conversations
from twintune.converters import arrow, mindrecord
from twintune.errors import UserError
from twintune.origin import Origin
from twintune.parts import TRAIN, VALIDATION, process_count, read_facts
from twintune.prepared import (
    ARROW,
    CONVERSATIONS,
    MINDRECORD,
    REJECTED,
    VALIDATION_ARROW,
    VALIDATION_MINDRECORD,
    DataFile,
    Prepared,
    Summary,
    write_manifest,
)
from twintune.recipe import Recipe
from twintune.row_maker import Rejected

SHOWN = 20  # rejected records that an error message lists
KINDS = ("invalid", "nothing_trained", "too_long")


@dataclass(frozen=True)
class Made:
    """What rows were made of and with, in values that a manifest holds.

    Attributes:
        files: the records, not counted yet.
        tokenizer_sha256: of the tokenizer's files.
    """

    fingerprint: str
    files: tuple[DataFile, ...]
    tokenizer_sha256: str
    pad_token: Choice
    pad_token_id: int

    @classmethod
    def by(cls, origin: Origin) -> "Made":
        """Of an origin."""
        files = [
            DataFile(
                source.path.name,
                sha256_file(source.path),
                Choice(source.format.name, source.format.reason),
                source.weight,
            )
            for source in origin.sources
        ]
        tokenizer = origin.maker.tokenizer
        return cls(origin.fingerprint, tuple(files), origin.tokenizer_sha256, tokenizer.pad, tokenizer.pad_token_id)


def assemble(
    parts: Sequence[Path],
    recipe: Recipe,
    made: Made,
    formats: Sequence[str],
    output_dir: Path,
    shown: Sequence[str] = (),
) -> Prepared:
    """Put parts together into a new folder.

    Args:
        parts: their folders, in order.
        recipe: of which data.packing and data.max_rejected_share matter here.
        made: what the parts were made of.
        formats: the row files to write.
        output_dir: the new folder.
        shown: the data files as messages show them; by default their names.

    Raises:
        UserError: if too many records were rejected, or the folder is in use.
    """
    names = [file.name for file in made.files]
    refuse_rejected(parts, shown or names, recipe.data.max_rejected_share)
    with new_folder(output_dir, made.fingerprint[:16]) as aside:
        facts = gather_conversations(parts, aside / CONVERSATIONS)
        if facts.columns["validation"].all():
            raise UserError("data.val_size: at least one conversation must be left to train on, got none; lower it")
        write_rows(parts, aside, formats, facts, process_count(recipe.data))
        write_rejected(parts, names, aside / REJECTED)
        recipe.save(aside / RECIPE)
        summary = summarize(parts, facts, recipe, made)
        data = recipe.data.model_dump(mode="json", exclude={"train"})
        made_with = {"twintune": __version__, "tokenizer_sha256": made.tokenizer_sha256, "data": data}
        write_manifest(aside, summary, made_with)
    return Prepared(output_dir, summary)


def summarize(parts: Sequence[Path], facts: Conversations, recipe: Recipe, made: Made) -> Summary:
    """Count everything."""
    part_facts = [read_facts(part) for part in parts]
    rejected = list(rejected_records(parts))
    training = facts.of(validation=False)
    lengths = facts.row_lengths(validation=False)
    kinds = Counter(one.kind for one in rejected)
    return Summary(
        fingerprint=made.fingerprint,
        files=tuple(_counted(file, number, part_facts, rejected) for number, file in enumerate(made.files)),
        left_out=sum(one["left_out"] for one in part_facts),
        rejected={kind: kinds[kind] for kind in KINDS},
        packed=recipe.data.packing,
        count=len(lengths),
        conversations=len(training["tokens"]),
        row_length=int(lengths.max()),
        tokens=int(training["tokens"].sum()),
        trained_tokens=int(training["trained_tokens"].sum()),
        cut_rows=int(training["cut"].sum()),
        not_closed=int((~training["closed"]).sum()),
        duplicates=len(training["digest"]) - len(np.unique(training["digest"])),
        validation_rows=int(facts.columns["validation"].sum()),
        largest_token_id=max(one["largest_token_id"] for one in part_facts),
        pad_token_id=made.pad_token_id,
        pad_token=made.pad_token,
    )


def _counted(file: DataFile, number: int, part_facts: list[dict[str, Any]], rejected: list[Rejected]) -> DataFile:
    read = sum(facts["read"].get(str(number), 0) for facts in part_facts)
    refused = sum(one.file == number for one in rejected)
    return replace(file, read=read, kept=read - refused, rejected=refused)


def write_rows(
    parts: Sequence[Path], folder: Path, formats: Sequence[str], facts: Conversations, processes: int
) -> None:
    """Write the rows of all parts, in their order, as Arrow and/or MindRecord, training and validation apart."""
    splits = [(False, TRAIN, ARROW, MINDRECORD), (True, VALIDATION, VALIDATION_ARROW, VALIDATION_MINDRECORD)]
    for validation, part_file, arrow_file, mindrecord_file in splits:
        lengths = facts.row_lengths(validation=validation)
        if not len(lengths):
            continue
        files = [part / part_file for part in parts if (part / part_file).exists()]
        if ARROW in formats:
            arrow.join_files(files, folder / arrow_file)
        if MINDRECORD in formats:
            mindrecord.write_files(files, folder / mindrecord_file, lengths, processes)


def rejected_records(parts: Iterable[Path]) -> Iterator[Rejected]:
    """The rejected records of all parts, in their order."""
    for part in parts:
        for values in read_facts(part)["rejected"]:
            yield Rejected(**values)


def write_rejected(parts: Sequence[Path], names: Sequence[str], path: Path) -> None:
    """Write rejected.jsonl: file, record, kind and reason of each rejected record."""
    with new_file(path) as aside, aside.open("w", encoding="utf-8") as stream:
        for one in rejected_records(parts):
            line = {"file": names[one.file], "record": one.record, "kind": one.kind, "reason": one.reason}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def refuse_rejected(parts: Sequence[Path], names: Sequence[str], share: float) -> None:
    """Raise UserError with the first reasons if more than `share` of the records read were rejected.

    Records that data.truncation_strategy: delete was asked to drop do not count.
    """
    read = sum(sum(read_facts(part)["read"].values()) for part in parts)
    kinds = Counter(one.kind for one in rejected_records(parts))
    wrong = kinds.total() - kinds["too_long"]
    if wrong <= share * read and kinds.total() < read:
        return
    shown: list[str] = []
    for one in rejected_records(parts):
        if len(shown) == SHOWN:
            break
        shown.append(f"{names[one.file]}: row {one.record}: {one.reason}")
    if kinds.total() == 1:
        raise UserError(f"{shown[0]} (1 of {read} records may not be rejected at data.max_rejected_share {share:g})")
    raise UserError(
        *shown,
        f"data.max_rejected_share: at most {share:.1%} of the records may be rejected, and some must be kept, got "
        f"{kinds.total()} of {read}; mend or remove these records, or raise the share",
    )
