"""What a recipe will train on, in numbers and examples, before anything is trained."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twintune.conversation_facts import read_conversations
from twintune.converters import arrow, mindrecord
from twintune.converters.lint import Finding, lint
from twintune.converters.packing import pack
from twintune.converters.rows import IGNORED, Row
from twintune.converters.tokenizer import Tokenizer
from twintune.origin import load_origin
from twintune.parts import RECORDS
from twintune.prepare import find_or_prepare
from twintune.prepared import ARROW, CONVERSATIONS, MINDRECORD, REJECTED, Prepared, Summary
from twintune.recipe import Recipe
from twintune.resizing import trained_model

BARS = 12  # of the length histogram
WORST = 3  # examples of each kind
LINTED = 1000  # rows that the linter looks into


@dataclass(frozen=True)
class Bar:
    """Conversations of `first` to `last` tokens."""

    first: int
    last: int
    count: int


class Piece(NamedTuple):
    """Some tokens as text: one token, or several that make a character together."""

    text: str
    trained: bool
    special: bool
    ids: tuple[int, ...]


class Example(NamedTuple):
    """One conversation of the training rows, token by token."""

    why: str
    place: str
    tokens: int
    trained_tokens: int
    pieces: list[Piece]


@dataclass(frozen=True)
class RejectedReason:
    """Why records were rejected, in the words for the first of them; how many; and where that one stands."""

    reason: str
    count: int
    first: str


@dataclass(frozen=True)
class Inspection:
    """All that `twintune inspect` shows.

    Attributes:
        padding: the share of a batch that is padding, by how rows are laid out.
    """

    prepared: Prepared
    cutoff_len: int
    template: str
    padding: dict[str, float]
    histogram: list[Bar]
    reasons: list[RejectedReason]
    findings: list[Finding]
    examples: list[Example]

    @property
    def summary(self) -> Summary:
        """Of the prepared rows."""
        return self.prepared.summary


def inspect_recipe(recipe: Recipe, first: int) -> Inspection:
    """Prepare a recipe's rows, however many records are rejected, and look at them.

    Raises:
        UserError: what prepare raises, but for too many rejected records.
    """
    data = recipe.data.model_copy(update={"max_rejected_share": 1.0})
    origin = load_origin(recipe)
    prepared = find_or_prepare(recipe.model_copy(update={"data": data}), origin)
    tokenizer, template = origin.maker.tokenizer, origin.maker.template
    rows = list(islice(read_rows(prepared.folder), LINTED))
    findings = lint(tokenizer, template, trained_model(recipe.model), prepared.summary, rows)
    return inspect(prepared, recipe.data.cutoff_len, template.name, tokenizer, findings, first)


def inspect(
    prepared: Prepared, cutoff_len: int, template: str, tokenizer: Tokenizer, findings: list[Finding], first: int
) -> Inspection:
    """Look at prepared rows.

    Args:
        prepared: the rows.
        cutoff_len: of the recipe.
        template: of the recipe.
        tokenizer: shows the rows' text.
        findings: of the linter.
        first: examples from the beginning, before the worst ones.
    """
    columns = read_conversations(prepared.folder / CONVERSATIONS)
    lengths = columns["tokens"]
    return Inspection(
        prepared,
        cutoff_len,
        template,
        _padding(lengths, cutoff_len),
        _histogram(lengths),
        _reasons(prepared.folder / REJECTED),
        findings,
        _examples(prepared, columns, tokenizer, first),
    )


def _padding(lengths: NDArray[np.int32], cutoff_len: int) -> dict[str, float]:
    """Shares in [0, 1]; packing is tried as prepare does it, part by part."""
    tokens = int(lengths.sum())
    groups = [lengths[start : start + RECORDS].tolist() for start in range(0, len(lengths), RECORDS)]
    packed_rows = sum(len(pack(group, cutoff_len)) for group in groups)
    return {
        f"every row as long as data.cutoff_len ({cutoff_len})": 1 - tokens / (len(lengths) * cutoff_len),
        f"every row as long as the longest ({lengths.max()})": 1 - tokens / (len(lengths) * int(lengths.max())),
        "data.packing": 1 - tokens / (packed_rows * cutoff_len),
    }


def _histogram(lengths: NDArray[np.int32]) -> list[Bar]:
    longest = int(lengths.max())
    edges = np.unique(np.linspace(0, longest, BARS + 1).astype(int))
    counts, _ = np.histogram(lengths, np.append(edges[:-1] + 1, longest + 1))
    return [
        Bar(first + 1, last, count)
        for first, last, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    ]


def _reasons(path: Path) -> list[RejectedReason]:
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            alike = re.sub(r"\d+|'.*'", "#", record["reason"])  # but for the numbers and values it tells
            counts[alike] += 1
            first.setdefault(alike, (record["reason"], f"{record['file']}: row {record['record']}"))
    return [RejectedReason(first[alike][0], count, first[alike][1]) for alike, count in counts.most_common()]


def _examples(prepared: Prepared, columns: dict[str, NDArray[Any]], tokenizer: Tokenizer, first: int) -> list[Example]:
    """The first conversations, then the worst of each kind; none twice."""
    share = columns["trained_tokens"] / columns["tokens"]
    _, earliest = np.unique(columns["digest"], return_index=True)
    repeated = np.setdiff1d(np.arange(len(share)), earliest)
    kinds = {
        "from the beginning": np.arange(min(first, len(share))),
        "cut": np.flatnonzero(columns["cut"])[:WORST],
        "does not end with the stop token": np.flatnonzero(~columns["closed"])[:WORST],
        "the same as an earlier one": repeated[:WORST],
        "longest": np.argsort(-columns["tokens"], kind="stable")[:WORST],
        "least trained": np.argsort(share, kind="stable")[:WORST],
    }
    chosen: dict[int, str] = {}
    for why, numbers in kinds.items():
        for number in numbers.tolist():
            chosen.setdefault(number, why)
    wanted = {int(columns["row"][number]) for number in chosen}
    training_rows = enumerate(islice(read_rows(prepared.folder), max(wanted) + 1))
    rows = {number: row for number, row in training_rows if number in wanted}
    names = [file.name for file in prepared.summary.files]
    return [_example(columns, number, why, rows, names, tokenizer) for number, why in chosen.items()]


def read_rows(folder: Path) -> Iterator[Row]:
    """The training rows of a prepared folder, from whichever file is there."""
    in_arrow = (folder / ARROW).is_file()
    return arrow.read_rows(folder / ARROW) if in_arrow else mindrecord.read_rows(folder / MINDRECORD)


def _example(
    columns: dict[str, NDArray[Any]],
    number: int,
    why: str,
    rows: dict[int, Row],
    names: Sequence[str],
    tokenizer: Tokenizer,
) -> Example:
    row = rows[int(columns["row"][number])]
    start, tokens = int(columns["start"][number]), int(columns["tokens"][number])
    part = slice(start, start + tokens)
    place = f"{names[columns['file'][number]]}: row {columns['record'][number]}"
    pieces = pieces_of(row.input_ids[part].tolist(), (row.labels[part] != IGNORED).tolist(), tokenizer)
    return Example(why, place, tokens, int(columns["trained_tokens"][number]), pieces)


def pieces_of(ids: Sequence[int], trained: Sequence[bool], tokenizer: Tokenizer) -> list[Piece]:
    """Token ids as stretches of text, each what its tokens add to the text before them."""
    special = {number: text for text, number in tokenizer.special_tokens.items()}
    pieces: list[Piece] = []
    before = ""
    waiting: list[int] = []  # tokens whose bytes do not make a character yet
    for position, token in enumerate(ids):
        if token in special:
            pieces.append(Piece(special[token], trained[position], True, (token,)))
            continue
        waiting.append(token)
        text = tokenizer.decode(ids[: position + 1])
        last = position + 1 == len(ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            continue
        pieces.append(Piece(text[len(before) :], trained[position], False, tuple(waiting)))
        before, waiting = text, []
    return pieces
