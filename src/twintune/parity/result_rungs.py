"""Rungs 10 to 12: the trained adapters and each under the other backend, the texts, and the merged weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.converters.adapter import read_adapter
from twintune.parity.bundle import ADAPTER, PIECES, TEXTS, Bundle, cross_group
from twintune.parity.gradient_rungs import module
from twintune.parity.pair import Pair, largest, relative_largest, same_rung, worst_name
from twintune.parity.verdict import Measure, Rung

FINAL, GENERATED, MERGED = "final adapter", "generated text", "merged weights"


def adapter_rung(number: int, pair: Pair) -> Rung:
    """Every matrix of the two final adapters; then each adapter's logits under both backends."""
    steps = [len(bundle.steps) for bundle in pair.bundles]
    if steps[0] != steps[1]:
        cause = f"the sides trained {steps[0]} and {steps[1]} steps: record both with the same --steps"
        return Rung(number, FINAL, "different", "The runs have other lengths.", place="all steps", cause=cause)
    one, other = (read_adapter(bundle.folder / ADAPTER)[1] for bundle in pair.bundles)
    errors = {name: largest(one[name], other[name]) if name in other else np.inf for name in one}
    worst = worst_name(errors)
    measures = [pair.measure("largest difference of a final LoRA matrix", "adapter", errors[worst], module(worst))]
    crossed = [*_crossed(pair, pair.first, pair.second), *_crossed(pair, pair.second, pair.first)]
    measures += crossed
    if all(measure.holds for measure in measures):
        words = "each was loaded by the other backend" if len(crossed) == 2 else _missing(len(crossed))
        return same_rung(number, FINAL, f"{len(one)} matrices agree; {words}.", tuple(measures))
    first = next(measure for measure in measures if not measure.holds)
    cause = (
        "the runs ended in other weights though their losses agreed: look at what moves weights and not losses, "
        "such as weight decay, or a matrix that is not trained on one side"
        if first is measures[0]
        else "one backend reads the other's adapter otherwise than it was written: names, transposes or scaling"
    )
    return Rung(number, FINAL, "different", f"{first.name} is {first.value:.2e}.", tuple(measures), first.place, cause)


def _missing(crossed: int) -> str:
    made = "only one was" if crossed else "neither was"
    return f"{made} loaded by the other backend (twintune parity cross adds that)"


def _crossed(pair: Pair, reader: Bundle, trainer: Bundle) -> list[Measure]:
    """What `reader`'s backend computed with `trainer`'s adapter, against what `trainer`'s own did; maybe nothing."""
    there, own = reader.arrays(cross_group(trainer)), trainer.arrays("run")
    errors = []
    for name in there:
        if f"final.{name}" in own:
            mine, theirs = _shared_positions(trainer, reader, name)
            errors.append(relative_largest(own[f"final.{name}"][mine], there[name][theirs]))
    if not errors:
        return []
    name = f"largest relative difference of logits, adapter of {trainer.name} under {reader.facts['backend']}"
    return [pair.measure(name, "cross_logits", max(errors))]


def _shared_positions(one: Bundle, other: Bundle, name: str) -> list[NDArray[np.int64]]:
    """Where the positions that both kept of a conversation stand in the logits of each."""
    first, second = (bundle.arrays("forward")[f"positions.{name}"] for bundle in (one, other))
    _, *places = np.intersect1d(first, second, return_indices=True)
    return places


def text_rung(number: int, pair: Pair) -> Rung:
    """Greedy texts token by token; then the shares that a first token is drawn from."""
    texts = [bundle.json(TEXTS) for bundle in pair.bundles]
    shared = min(len(each["texts"]) for each in texts)
    ties = []
    for one, other in zip(texts[0]["texts"], texts[1]["texts"], strict=False):
        token = _first_other(one["greedy"], other["greedy"])
        if token is None:
            continue
        if min(one["margins"][token], other["margins"][token]) <= _logit_error(pair):
            ties.append(f"conversation {one['conversation']}, token {token}")
            continue
        return _greedy_rung(number, pair, texts, one, other, token)
    draws = [bundle.arrays("texts") for bundle in pair.bundles]
    distances = {name: float(np.abs(array - draws[1][name]).sum()) / 2 for name, array in draws[0].items()}
    worst = worst_name(distances)
    limit = 2 * _logit_error(pair) / texts[0]["sampling"]["temperature"]
    drawn = Measure("largest total variation of a first token's shares", distances[worst], limit, _prompt(pair, worst))
    if not drawn.holds:
        return _draw_rung(number, draws, worst, drawn)
    words = f"; {len(ties)} texts part at a tie within rounding ({', '.join(ties)})" if ties else ""
    return same_rung(number, GENERATED, f"{shared} greedy texts agree token by token{words}.", (drawn,))


def _first_other(one: list[int], other: list[int]) -> int | None:
    if one == other:
        return None
    shared = min(len(one), len(other))
    return next((place for place in range(shared) if one[place] != other[place]), shared)


def _logit_error(pair: Pair) -> float:
    """The most that a logit of the same job may differ."""
    logits = pair.first.arrays("run")
    return pair.limits["logits"].value * max(float(np.abs(array).max()) for array in logits.values())


def _greedy_rung(
    number: int, pair: Pair, texts: list[Any], one: Mapping[str, Any], other: Mapping[str, Any], token: int
) -> Rung:
    row = pair.first.facts["conversations"][one["conversation"]]["row"]
    stops = [each["eos_token_ids"] for each in texts]
    if stops[0] != stops[1]:
        cause = f"the sides stop at other tokens: eos_token_ids {stops[0]} and {stops[1]}"
    elif token == len(one["greedy"]) or token == len(other["greedy"]):
        cause = "one side stops where the other goes on: its list of eos tokens or its stop text differs"
    else:
        cause = (
            "logits of whole rows agree and decoding does not: the padding of a batch (its mask and "
            "positions) or the key-value cache of one side"
        )
    pieces = [bundle.json(PIECES) for bundle in pair.bundles]
    return Rung(
        number,
        GENERATED,
        "different",
        f"Greedy texts part at token {token}.",
        place=f"prompt of row {row}, new token {token}",
        cause=cause,
        details=tuple(
            f"{bundle.name}: {each['text']!r}; token {token} is {_piece(each['greedy'], token, names)}"
            for bundle, each, names in zip(pair.bundles, (one, other), pieces, strict=True)
        ),
    )


def _piece(ids: list[int], token: int, pieces: Mapping[str, str]) -> str:
    return "the end" if token >= len(ids) else f"{pieces.get(str(ids[token]), '')!r} [{ids[token]}]"


def _draw_rung(number: int, draws: list[dict[str, Any]], worst: str, measure: Measure) -> Rung:
    kept = [int(np.count_nonzero(each[worst])) for each in draws]
    cause = "the sampler's shares differ: temperature, or the logits after the prompt"
    if kept[0] != kept[1]:
        cause = (
            f"one side keeps {kept[0]} tokens to draw from, the other {kept[1]}: top-p with or without the token that "
            "crosses p, or top-k"
        )
    return Rung(
        number, GENERATED, "different", "A first token is drawn from other shares.", (measure,), measure.place, cause
    )


def _prompt(pair: Pair, name: str) -> str:
    conversation = pair.first.facts["conversations"][int(name.removeprefix("shares."))]
    return f"prompt of row {conversation['row']}"


def merged_rung(number: int, pair: Pair) -> Rung:
    """On each side the logits of merged weights against those of the adapter."""
    if pair.first.facts["recipe"]["model"].get("load_in_4bit"):
        reason = "The base is in 4 bits: an adapter is merged into the base as it is stored, which computes otherwise."
        return Rung(number, MERGED, "not measured", reason)
    measures = []
    for bundle in pair.bundles:
        arrays = bundle.arrays("run")
        names = [name.removeprefix("final.") for name in arrays if name.startswith("final.")]
        error = max(relative_largest(arrays[f"final.{name}"], arrays[f"merged.{name}"]) for name in names)
        name = f"largest relative difference of logits, merged and not, on {bundle.name}"
        measures.append(pair.measure(name, "merged_logits", error, bundle.facts["backend"]))
    if all(measure.holds for measure in measures):
        return same_rung(
            number, MERGED, "Merged weights compute what the adapter does, on both sides.", tuple(measures)
        )
    first = next(measure for measure in measures if not measure.holds)
    cause = "merging loses something: the scaling, a module, or digits of a small dtype"
    return Rung(number, MERGED, "different", f"{first.name} is {first.value:.2e}.", tuple(measures), first.place, cause)
