"""What a comparison of two bundles found: plain facts, which the reports show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from twintune.backends.job import Step

Status = Literal["same", "different", "not measured"]


@dataclass(frozen=True)
class Measure:
    """One number that was compared with its limit.

    Attributes:
        name: what it is, such as `largest difference of a loss`.
        value: how far the two sides are apart; nan if either is not a number.
        limit: the most that the same job may differ; None for a number that is only shown.
        place: where the value was found, such as `step 7` or `layers.3.self_attn.q_proj`; may be empty.
    """

    name: str
    value: float
    limit: float | None = None
    place: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        number: from 1.
        name: what is compared, in a few words.
        status: `not measured` where a lower rung does not hold, or a bundle does not have what it takes.
        summary: one sentence: what was compared and how it came out.
        measures: the numbers behind it.
        place: the first mismatch: step, layer, row, token; empty if there is none.
        cause: what it most likely comes from; empty if there is no mismatch.
        details: lines that show the mismatch, such as the tokens around it; empty if there is none.
    """

    number: int
    name: str
    status: Status
    summary: str
    measures: tuple[Measure, ...] = ()
    place: str = ""
    cause: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        name: the folder's last name, as the user gave it.
        backend, device, dtype: what computed.
        versions: of Python, the frameworks and what decides numbers, by package.
        steps: the log of the run.
    """

    name: str
    backend: str
    device: str
    dtype: str
    versions: Mapping[str, str]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The whole comparison.

    Attributes:
        sides: first and second; differences are second minus first.
        rungs: all of the ladder, in order.
        job: facts of the job for the run card, by name: model, data files with their sha256, template, rows,
            LoRA, optimizer, schedule, steps, bundle hashes.
        stage_errors: largest relative error of the hidden states by stage of the network (`embed_tokens`,
            `layers.0`, ..., `norm`, `logits`), by which adapter was on it (`without adapter`, `with adapter`).
        tolerances: the limits that were used, by name, with the sentence that says where they come from.
    """

    sides: tuple[Side, Side]
    rungs: tuple[Rung, ...]
    job: Mapping[str, str]
    stage_errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tolerances: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    @property
    def first_difference(self) -> Rung | None:
        """The lowest rung that does not hold."""
        return next((rung for rung in self.rungs if rung.status == "different"), None)

    @property
    def same(self) -> bool:
        """Whether no rung that was measured differs."""
        return self.first_difference is None

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        measured = sum(rung.status != "not measured" for rung in self.rungs)
        rung = self.first_difference
        if rung is None:
            return f"The same job: {measured} of {len(self.rungs)} rungs measured, all within their limits."
        place = f" at {rung.place}" if rung.place else ""
        return f"Not the same job: the first difference is on rung {rung.number}, {rung.name}{place}."
