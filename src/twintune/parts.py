"""Rows in parts of a few thousand records: what is done is kept, so that a killed prepare goes on where it was.

A part is a folder that appears whole. What is in it depends on its records and the recipe alone: not on the
number of processes, nor on how often the work was broken off, nor on which machine of several did it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from twintune.artifacts import new_folder, write_json
from twintune.converters import arrow
from twintune.converters.packing import pack, pack_row
from twintune.converters.rows import Row
from twintune.errors import UserError
from twintune.recipe_sections import DataSection
from twintune.row_maker import Item, Kept, Rejected, RowMaker

RECORDS = 4096  # of a part: enough to fill packed rows, few enough for memory and to lose little
FACTS = "facts.json"
TRAIN = "train.arrow"
VALIDATION = "validation.arrow"
CONVERSATIONS = "conversations.arrow"


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of the parts: every count-th, from `index`, which counts from 1."""

    index: int
    count: int

    def has(self, part: int) -> bool:
        """Whether this share has the part of that number."""
        return part % self.count == self.index - 1


def part_folder(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / f"part-{number:06}"


def process_count(data: DataSection) -> int:
    """Processes that a recipe asks for, by default one for each core."""
    return data.preprocessing_num_workers or os.cpu_count() or 1


def build_parts(items: Iterable[Item], maker: RowMaker, folder: Path, shard: Shard) -> int:
    """Make every part of a shard that is not in `folder` yet; a single one in this process.

    Args:
        items: all records, whatever the shard.
        maker: makes their rows.
        folder: where the parts lie.
        shard: the share to make.

    Returns:
        the number of parts of all shards.

    Raises:
        UserError: what reading the records raises, or if a process dies.
    """
    numbered = enumerate(_in_groups(items))
    first, second = next(numbered, None), next(numbered, None)
    found = [part for part in (first, second) if part is not None]
    total = len(found)

    def missing() -> Iterator[tuple[int, tuple[Item, ...]]]:
        nonlocal total
        for number, part in chain(found, numbered):
            total = number + 1
            if shard.has(number) and not part_folder(folder, number).exists():
                yield number, part

    processes = process_count(maker.data)
    if second is None or processes == 1:
        for number, part in missing():
            make_part(maker, part, part_folder(folder, number))
    else:
        _in_processes(missing(), maker, folder, processes)
    return total


def make_part(maker: RowMaker, items: Iterable[Item], folder: Path) -> None:
    """Make one part: rows, facts of each conversation, and the records that were rejected."""
    items = list(items)
    kept, rejected = maker.make(items)
    training = [one for one in kept if not one.validation]
    validation = [one for one in kept if one.validation]
    with new_folder(folder, "new") as aside:
        rows, places = _lay_out(training, maker.data.cutoff_len if maker.data.packing else None)
        arrow.write_rows(rows, aside / TRAIN, packed=maker.data.packing)
        conversations = list(zip(training, places, strict=True))
        if maker.data.val_size:
            rows, places = _lay_out(validation, None)
            arrow.write_rows(rows, aside / VALIDATION)
            conversations += zip(validation, places, strict=True)
        _write_conversations(conversations, aside / CONVERSATIONS)
        largest = max((int(one.row.input_ids.max()) for one in kept), default=-1)
        write_json(aside / FACTS, _facts(items, rejected, largest))


def read_facts(folder: Path) -> dict[str, Any]:
    """What a part's facts.json says."""
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return facts


def _in_groups(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    iterator = iter(items)
    while group := tuple(islice(iterator, RECORDS)):
        yield group


_maker: list[RowMaker] = []  # of a worker process: set once, as a tokenizer is long to unpack


def _start(maker: RowMaker) -> None:
    _maker.append(maker)


def _work(part: tuple[Item, ...], folder: Path) -> None:
    make_part(_maker[0], part, folder)


def _in_processes(parts: Iterator[tuple[int, tuple[Item, ...]]], maker: RowMaker, folder: Path, processes: int) -> None:
    """Spawned, not forked: a fork of a process that has threads, such as MindSpore's, may hang."""
    from multiprocessing import get_context

    running: set[Future[None]] = set()
    try:
        with ProcessPoolExecutor(processes, get_context("spawn"), _start, (maker,)) as pool:
            for number, part in parts:
                running.add(pool.submit(_work, part, part_folder(folder, number)))
                if len(running) > processes:  # one part more than processes waits, so that memory stays small
                    running = _finish_one(running)
            while running:
                running = _finish_one(running)
    except BrokenProcessPool:
        raise UserError(
            "prepare's worker processes must live to their end, got one that was killed (out of memory?); "
            "run the same command again, which goes on where it was, with a smaller data.preprocessing_num_workers"
        ) from None


def _finish_one(running: set[Future[None]]) -> set[Future[None]]:
    done, waiting = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return waiting


def _lay_out(kept: list[Kept], packed_length: int | None) -> tuple[list[Row], list[tuple[int, int]]]:
    """The rows to write, and for each conversation its row's number and where in it it starts."""
    if packed_length is None:
        return [one.row for one in kept], [(number, 0) for number in range(len(kept))]
    rows = []
    places = [(0, 0)] * len(kept)
    for number, members in enumerate(pack([len(one.row.input_ids) for one in kept], packed_length)):
        start = 0
        for member in members:
            places[member] = (number, start)
            start += len(kept[member].row.input_ids)
        rows.append(pack_row([kept[member].row for member in members]))
    return rows, places


def _write_conversations(conversations: list[tuple[Kept, tuple[int, int]]], path: Path) -> None:
    import pyarrow as pa

    columns = {
        "file": pa.array([one.file for one, _ in conversations], pa.int32()),
        "record": pa.array([one.record for one, _ in conversations], pa.int32()),
        "validation": pa.array([one.validation for one, _ in conversations], pa.bool_()),
        "row": pa.array([row for _, (row, _) in conversations], pa.int32()),
        "start": pa.array([start for _, (_, start) in conversations], pa.int32()),
        "tokens": pa.array([len(one.row.input_ids) for one, _ in conversations], pa.int32()),
        "trained_tokens": pa.array([one.row.trained_tokens for one, _ in conversations], pa.int32()),
        "cut": pa.array([one.row.cut for one, _ in conversations], pa.bool_()),
        "closed": pa.array([one.closed for one, _ in conversations], pa.bool_()),
        "digest": pa.array([one.digest for one, _ in conversations], pa.uint64()),
    }
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


def _facts(items: list[Item], rejected: list[Rejected], largest: int) -> dict[str, Any]:
    read = Counter(str(item.file) for item in items if not item.left_out)
    return {
        "read": dict(read),  # records by number of the file
        "left_out": sum(item.left_out for item in items),
        "largest_token_id": largest,
        "rejected": [one._asdict() for one in rejected],
    }
