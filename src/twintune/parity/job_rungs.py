"""Rungs 1 and 2: the same recipe in the same dtype, and the same rows in the same order, byte for byte."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.converters.rows import IGNORED, Row
from twintune.models import DEFAULTS
from twintune.parity.bundle import PIECES
from twintune.parity.describe import unflat_rows
from twintune.parity.pair import Pair, same_rung
from twintune.parity.verdict import Rung
from twintune.recipe import Recipe
from twintune.trees import laid_over

RECIPE, ROWS = "environment and resolved recipe", "rows"
SHOWN_BEFORE, SHOWN_AFTER = 4, 12  # tokens around the first difference


def recipe_rung(number: int, pair: Pair) -> Rung:
    """Recipe, model configuration and dtype are equal; versions and devices may differ and are only shown."""
    recipes = (laid_over(_default_recipe(), recipe) for recipe in pair.facts("recipe"))
    configs = (DEFAULTS | config for config in pair.facts("model_config"))
    differences = [*_differences("", *recipes), *_differences("model", *configs)]
    dtypes = pair.facts("dtype")
    if dtypes[0] != dtypes[1]:
        differences.insert(0, ("backend.dtype", *dtypes))
    if not differences:
        return same_rung(number, RECIPE, f"One recipe, one model configuration, {dtypes[0]} on both sides.")
    key, first, second = differences[0]
    return Rung(
        number,
        RECIPE,
        "different",
        f"{len(differences)} keys differ, {key} first.",
        place=key,
        cause=f"{key} is {first!r} on one side and {second!r} on the other: record both from one recipe",
        details=tuple(f"{key}: {first!r} | {second!r}" for key, first, second in differences),
    )


def _default_recipe() -> dict[str, Any]:
    """What a key means that the twintune of an older bundle did not know: its default."""
    return Recipe.model_validate({"model": {"name_or_path": "."}, "data": {"train": "."}}).model_dump(mode="json")


def _differences(prefix: str, first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            yield from _differences(f"{prefix}.{key}".lstrip("."), first.get(key), second.get(key))
    elif first != second:
        yield prefix, first, second


def rows_rung(number: int, pair: Pair) -> Rung:
    """Ids, labels and borders of every row by digest, and the order they are trained in."""
    one, other = pair.arrays("rows")
    digests = one["digests"], other["digests"]
    steps = min(len(one["order"]), len(other["order"]))
    orders = one["order"][:steps], other["order"][:steps]
    if np.array_equal(*digests) and np.array_equal(*orders):
        tokens = pair.facts("rows")[0]["tokens"]
        count = len(digests[0])
        return same_rung(number, ROWS, f"{count} rows, {tokens} tokens: ids, labels and order equal byte for byte.")
    if np.array_equal(*digests):
        return _order_rung(number, *orders)
    if Counter(digests[0].tolist()) == Counter(digests[1].tolist()):
        row = _first_difference(*digests)
        cause = "the rows are the same, but lie in another order: one side shuffled or sorted them"
        return Rung(number, ROWS, "different", "The same rows in another order.", place=f"row {row}", cause=cause)
    return _content_rung(number, pair, one, other)


def _order_rung(number: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> Rung:
    step = _first_difference(one.reshape(len(one), -1), other.reshape(len(other), -1))
    details = tuple(f"step {step + 1}: rows {order[step].ravel().tolist()}" for order in (one, other))
    cause = "one side deals the rows in another order: compare train.seed, batch, accumulation and the shuffle"
    return Rung(
        number, ROWS, "different", "The same rows, trained in another order.", place=f"step {step + 1}", cause=cause,
        details=details,
    )  # fmt: skip


def _content_rung(number: int, pair: Pair, one: Mapping[str, Any], other: Mapping[str, Any]) -> Rung:
    row = _first_difference(one["digests"], other["digests"])
    counts = len(one["digests"]), len(other["digests"])
    shared = min(counts)
    differing = int((one["digests"][:shared] != other["digests"][:shared]).sum()) + max(counts) - shared
    summary = f"{differing} of {counts[0]} and {counts[1]} rows differ, row {row} first."
    left, right = unflat_rows(one).get(row), unflat_rows(other).get(row)
    if left is None or right is None:
        cause = "a row is missing on one side" if row >= shared else "record both with --all to see the row's tokens"
        files = [[file["sha256"] for file in rows["files"]] for rows in pair.facts("rows")]
        cause = cause if files[0] == files[1] else f"the data files differ; {cause}"
        return Rung(number, ROWS, "different", summary, place=f"row {row}", cause=cause)
    token = _first_token(left, right)
    return Rung(
        number,
        ROWS,
        "different",
        summary,
        place=f"row {row}, token {token}",
        cause=_row_cause(left, right),
        details=tuple(_decoded(left, right, token, pair)),
    )


def _first_difference(one: NDArray[Any], other: NDArray[Any]) -> int:
    """The first index at which two arrays differ along their first axis, or the end of the shorter."""
    shared = min(len(one), len(other))
    differs = (one[:shared] != other[:shared]).reshape(shared, -1).any(axis=1)
    return int(np.argmax(differs)) if differs.any() else shared


def _first_token(left: Row, right: Row) -> int:
    ids = _first_difference(left.input_ids, right.input_ids)
    return min(ids, _first_difference(left.labels, right.labels))


def _row_cause(left: Row, right: Row) -> str:
    """What two rows of one record most likely differ by."""
    if not np.array_equal(left.input_ids, right.input_ids):
        first = _first_difference(left.input_ids, right.input_ids)
        answer = min(_trained(left)[:1].tolist() + _trained(right)[:1].tolist() + [len(left.input_ids)])
        if len(left.input_ids) == len(right.input_ids) and (left.input_ids != right.input_ids).sum() == 1:
            return "a single token id differs: a damaged file, or one token added to the tokenizer"
        if first < answer:
            return "the rendered prompt differs: another template, system prompt or instruction join, or tokenizer"
        return "the answer's tokens differ: another tokenizer version, closing token or truncation"
    trained = _trained(left), _trained(right)
    fewer, more = sorted(trained, key=len)
    extra = np.setdiff1d(more, fewer)
    if len(fewer) and len(fewer) == len(more) and np.array_equal(fewer, more):
        return "the labels hold other ids than the row: they are shifted by one, or damaged"
    if len(fewer) and len(more) == len(fewer) and abs(int(more[0]) - int(fewer[0])) == 1:
        return "the trained span is off by one: labels are shifted, or count a token too many in the prompt"
    if np.array_equal(extra, more[-1:]):
        return "the closing token is trained on one side only"
    if np.isin(np.arange(1, fewer[0] if len(fewer) else len(left.labels)), extra).all():
        return "the prompt is trained on one side only"
    return "other tokens are trained: compare data.mask_history, data.train_on_prompt and the template's separators"


def _trained(row: Row) -> NDArray[np.int64]:
    return np.flatnonzero(row.labels != IGNORED)


def _decoded(left: Row, right: Row, token: int, pair: Pair) -> Iterator[str]:
    """The tokens around a place on both sides, ids in brackets, trained ones marked."""
    pieces = [bundle.json(PIECES) for bundle in pair.bundles]
    for place in range(max(0, token - SHOWN_BEFORE), token + SHOWN_AFTER):
        sides = [_token(row, place, names) for row, names in zip((left, right), pieces, strict=True)]
        if any(sides):
            yield f"token {place}: {sides[0] or 'the row has ended'} | {sides[1] or 'the row has ended'}" + (
                "" if sides[0] == sides[1] else "   <- differs"
            )


def _token(row: Row, place: int, pieces: Mapping[str, str]) -> str:
    if place >= len(row.input_ids):
        return ""
    number, label = int(row.input_ids[place]), int(row.labels[place])
    trained = "masked" if label == IGNORED else "trained" if label == number else f"label {label}"
    return f"{pieces.get(str(number), '')!r} [{number}] {trained}"
