"""Faults of the rows that one backend reads: their manifest knows nothing of them."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tests.parity.fault_places import Patch, plan
from twintune.converters import arrow
from twintune.converters.rows import IGNORED, Row
from twintune.prepared import ARROW, Prepared
from twintune.recipe import Recipe


def in_rows(change: Callable[[list[Row]], list[Row]]) -> Callable[[Patch], None]:
    """Plant a fault in the rows that the backend reads; its manifest knows nothing of it."""

    def plant(patch: Patch) -> None:
        find = plan.find_or_prepare

        def changed(recipe: Recipe) -> Prepared:
            prepared: Prepared = find(recipe)
            rows = list(arrow.read_rows(prepared.folder / ARROW))
            folder = prepared.folder.parent / f"changed-{change.__name__}"
            shutil.copytree(prepared.folder, folder, dirs_exist_ok=True)
            arrow.write_rows(change(rows), folder / ARROW)
            return replace(prepared, folder=folder)

        patch.setattr(plan, "find_or_prepare", changed)

    return plant


def label_off_by_one(rows: list[Row]) -> list[Row]:
    """The first trained token is masked and one token of the next turn's opening is trained instead."""
    return [Row(row.input_ids, np.where(np.roll(row.labels != IGNORED, -1), row.input_ids, IGNORED)) for row in rows]


def prompt_trained(rows: list[Row]) -> list[Row]:
    return [Row(row.input_ids, row.input_ids.copy()) for row in rows]


def eos_not_trained(rows: list[Row]) -> list[Row]:
    changed = []
    for row in rows:
        labels = row.labels.copy()
        labels[np.flatnonzero(labels != IGNORED)[-1]] = IGNORED
        changed.append(Row(row.input_ids, labels))
    return changed


def another_order(rows: list[Row]) -> list[Row]:
    return [*rows[:2], *rows[2:][::-1]]


def one_flipped_byte(rows: list[Row]) -> list[Row]:
    ids = rows[4].input_ids.copy()
    ids[7] ^= 1
    return [*rows[:4], Row(ids, np.where(rows[4].labels == IGNORED, IGNORED, ids)), *rows[5:]]


def another_system_prompt(recipe: Recipe) -> Callable[[Patch], None]:
    """The rows that a FastChat of another version would have made: its template has another system prompt."""

    def plant(patch: Patch) -> None:
        find = plan.find_or_prepare
        data = recipe.data.model_copy(update={"system": "You are another assistant."})
        other = find(recipe.model_copy(update={"data": data}))

        def changed(asked: Recipe) -> Prepared:
            prepared: Prepared = find(asked)
            return replace(prepared, folder=other.folder)

        patch.setattr(plan, "find_or_prepare", changed)

    return plant
