"""Rung 5: logits of some conversations, without an adapter and with one, and the first stage at which they part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.parity.bundle import BASE, PROBE
from twintune.parity.pair import Pair, badness, relative_largest, same_rung
from twintune.parity.verdict import Measure, Rung

NAME = "logits"
LOGITS = "logits"
ADAPTERS = {BASE: "without adapter", PROBE: "with adapter"}
ALIGNED = 0.9  # cosine of two effects that differ in strength alone


@dataclass(frozen=True)
class Stage:
    """One stage of the network for one conversation on both sides, at the positions that both kept.

    Attributes:
        name: `embed_tokens`, `layers.0`, ..., `norm`, `logits`.
        conversation: its number.
        positions: int64 [positions].
        one, other: float32 [positions, width].
    """

    name: str
    conversation: int
    positions: NDArray[np.int64]
    one: NDArray[np.float32]
    other: NDArray[np.float32]

    @property
    def error(self) -> float:
        """The largest difference, relative to the largest number of the first side."""
        return relative_largest(self.one, self.other)

    @property
    def _scale(self) -> float:
        return max(float(np.abs(self.one).max(initial=0.0)), float(np.finfo(np.float32).tiny))

    def first_position(self, limit: float) -> int:
        """The first position whose error is above the limit."""
        errors = np.abs(self.other.astype(np.float64) - self.one).max(axis=1) / self._scale
        above = ~(errors <= limit)
        return int(self.positions[int(np.argmax(above))]) if above.any() else int(self.positions[int(errors.argmax())])


def forward_rung(number: int, pair: Pair) -> Rung:
    """Logits first; where they differ, the hidden states say from which stage, row and token on."""
    measures = []
    for adapter, words in ADAPTERS.items():
        logits = (stage for stage in read_stages(pair, adapter) if stage.name == LOGITS)
        worst = max(logits, key=lambda stage: badness(stage.error))
        name = f"largest relative difference of logits {words}"
        measures.append(pair.measure(name, "logits", worst.error, _place(pair, worst)))
        if not measures[-1].holds:
            return _different(number, pair, adapter, tuple(measures))
    count = pair.first.facts["measured_conversations"]
    return same_rung(
        number, NAME, f"Logits of {count} conversations agree, with an adapter and without.", tuple(measures)
    )


def stage_errors(pair: Pair) -> dict[str, dict[str, float]]:
    """The largest relative error of each stage over all conversations, by which adapter was on the network."""
    errors: dict[str, dict[str, float]] = {}
    for adapter, words in ADAPTERS.items():
        for stage in read_stages(pair, adapter):
            series = errors.setdefault(words, {})
            series[stage.name] = max(series.get(stage.name, 0.0), stage.error, key=badness)
    return errors


def read_stages(pair: Pair, adapter: str) -> Iterator[Stage]:
    """Every stage of every conversation that both bundles hold, in the order of the network."""
    arrays = pair.arrays("forward")
    if not all(arrays):
        return
    count = min(pair.facts("measured_conversations"))
    stages = pair.first.facts["stages"]
    for number in range(count):
        hidden, logits = (_common(arrays, number, adapter, kind) for kind in ("hidden", "logits"))
        for place, name in enumerate(stages):
            yield Stage(name, number, hidden[0], hidden[1][place], hidden[2][place])
        yield Stage(LOGITS, number, *logits)


def _common(
    arrays: tuple[Mapping[str, Any], Mapping[str, Any]], number: int, adapter: str, kind: str
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Positions that both kept, and the numbers there."""
    first, second = (each[f"positions.{number}.{kind}"] for each in arrays)
    shared, *picks = np.intersect1d(first, second, return_indices=True)
    one, other = (
        each[f"{adapter}.{number}.{kind}"].take(pick, axis=-2) for each, pick in zip(arrays, picks, strict=True)
    )
    return shared, one, other


def first_stage(pair: Pair, adapter: str) -> Stage:
    """The first stage that differs, or the worst logits where only they do."""
    stages = list(read_stages(pair, adapter))
    limit = pair.limits["hidden"].value
    parted = (stage for stage in stages if not stage.error <= limit and stage.name != LOGITS)
    worst = max((stage for stage in stages if stage.name == LOGITS), key=lambda stage: badness(stage.error))
    return next(parted, worst)


def _different(number: int, pair: Pair, adapter: str, measures: tuple[Measure, ...]) -> Rung:
    first, words = first_stage(pair, adapter), ADAPTERS[adapter]
    position = first.first_position(pair.limits["hidden"].value)
    stages = (stage for stage in read_stages(pair, adapter) if stage.conversation == first.conversation)
    return Rung(
        number,
        NAME,
        "different",
        f"Logits {words} differ; the first stage that does is {first.name}.",
        measures,
        place=f"{first.name}, {_place(pair, first, position)}, {words}",
        cause=_cause(pair, first, position, words),
        details=tuple(f"{stage.name}: relative error {stage.error:.2e}" for stage in stages),
    )


def _place(pair: Pair, stage: Stage, position: int | None = None) -> str:
    fact = pair.first.facts["conversations"][stage.conversation]
    place = stage.first_position(np.inf) if position is None else position
    return f"row {fact['row']}, token {fact['start'] + place}"


def _cause(pair: Pair, first: Stage, position: int, words: str) -> str:
    """What the place at which two forwards part most likely says."""
    if words == ADAPTERS[PROBE]:
        return _adapter_cause(pair, first)
    if first.name == "embed_tokens":
        return "the embedding is looked up or scaled in another way"
    if first.name == "norm":
        return "the final norm: its epsilon or its weight is used in another way"
    if first.name == LOGITS:
        return "the head: it is tied on one side only, or logits are scaled or capped there"
    if position == 0:
        return (
            f"{first.name} differs already for a first token, which attends to itself alone: look at its norms "
            "(rms_norm_eps or layer_norm_eps), the v and o projections, the MLP and its activation, "
            "not at rope or the mask"
        )
    if position <= first.positions[1]:
        return (
            f"{first.name} agrees for the first token and differs from the next on: look at the rotary embedding "
            "(rope theta, rope scaling), at q and k with their bias, and at the attention's scale"
        )
    return (
        f"{first.name} agrees up to token {position}: there the mask hides or shows something on one side only, "
        "such as a pad id in the middle of the text, or a border of packed conversations"
    )


def _adapter_cause(pair: Pair, first: Stage) -> str:
    bare = {(stage.name, stage.conversation): stage for stage in read_stages(pair, BASE)}
    without = bare[first.name, first.conversation]
    effects = [(first.one - without.one).ravel(), (first.other - without.other).ravel()]
    sizes = [float(np.linalg.norm(effect)) for effect in effects]
    if min(sizes) == 0:
        return "the adapter has no effect on one side: its matrices were not put in, or its scaling is 0"
    cosine = float(effects[0] @ effects[1]) / (sizes[0] * sizes[1])
    ratio = sizes[1] / sizes[0]
    if cosine > ALIGNED and abs(ratio - 1) > 0.05:
        return (
            f"without an adapter the networks agree, and the adapter acts {ratio:.2g} times as strongly on the second "
            "side: its scaling is not lora_alpha / r on one of them"
        )
    return (
        "without an adapter the networks agree, and the adapter acts in another way: A and B swapped or transposed, "
        "or put on other modules (lora.target_modules)"
    )
