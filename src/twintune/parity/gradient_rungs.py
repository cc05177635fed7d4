"""Rungs 6 and 7: losses, counts of trained tokens and gradients of the first optimizer step's rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.parity.pair import Pair, relative_norm, same_rung, worst_name
from twintune.parity.verdict import Measure, Rung

LOSSES, GRADIENTS = "losses and trained tokens", "gradients"
FACTS = ("row_losses", "row_tokens")
FAR = 0.5  # a loss so much larger, relatively, is of other labels
EVEN = 0.02  # spread of ratios that are all alike


def loss_rung(number: int, pair: Pair) -> Rung:
    """Each row's own loss and count, then the loss of the whole step."""
    one, other = pair.arrays("gradients")
    counts = one["row_tokens"].ravel(), other["row_tokens"].ravel()
    rows = pair.first.arrays("rows")["order"][0].ravel()
    if not np.array_equal(*counts):
        return _count_rung(number, pair, rows, *counts)
    means = [each["row_losses"].ravel() / np.maximum(counts[0], 1) for each in (one, other)]
    differences = np.abs(means[1] - means[0])
    place = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    row = pair.measure(
        "largest difference of a row's loss", "row_loss", float(differences[place]), f"row {rows[place]}"
    )
    steps = [fact["loss"] for fact in pair.facts("first_step")]
    step = pair.measure("difference of the step's loss", "row_loss", abs(steps[1] - steps[0]))
    if not row.holds:
        return Rung(
            number,
            LOSSES,
            "different",
            f"Row {rows[place]} has loss {means[0][place]:.6f} and {means[1][place]:.6f}.",
            (row, step),
            place=row.place,
            cause=_row_cause(*means),
        )
    if not step.holds:
        return _step_rung(number, pair, one, (row, step))
    total = int(counts[0].sum())
    return same_rung(
        number, LOSSES, f"{len(rows)} rows, {total} trained tokens: counts equal, losses agree.", (row, step)
    )


def _count_rung(
    number: int, pair: Pair, rows: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> Rung:
    place = int(np.argmax(one != other))
    differences = np.unique(other - one)
    if len(differences) == 1:
        cause = (
            f"the count differs in every row by {int(differences[0]):+d}: labels are shifted by one, or the closing "
            "token is not trained, inside one backend"
        )
    elif (differences >= 0).all() or (differences <= 0).all():
        cause = "one side counts more labels: it trains the prompt or the padding too, or masks a token id"
    else:
        cause = "the sides count other labels: the loss of one trains on other tokens"
    return Rung(
        number,
        LOSSES,
        "different",
        f"Row {rows[place]} has {one[place]} and {other[place]} trained tokens.",
        place=f"row {rows[place]}",
        cause=cause,
        details=tuple(f"row {row}: {a} | {b} trained tokens" for row, a, b in zip(rows, one, other, strict=True)),
    )


def _row_cause(one: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    difference = other - one
    if np.isnan(difference).any():
        return "a loss is not a number: an overflow in the loss or its dtype"
    if (np.abs(difference) > FAR * np.minimum(np.abs(one), np.abs(other))).any():
        return "logits agree, and one side's loss is far off: its labels do not belong to their positions (off by one)"
    return (
        "logits agree in evaluation, losses do not in training: dropout is on for one side or drawn in another way, "
        "labels are shifted (off by one) inside it, or its training path (attention of packed rows, padding) computes "
        "something else"
    )


def _step_rung(number: int, pair: Pair, arrays: Mapping[str, Any], measures: tuple[Measure, ...]) -> Rung:
    """Rows agree, their mean does not: say which mean each side takes."""
    losses, tokens = arrays["row_losses"], arrays["row_tokens"]
    means = {
        "the mean over all trained tokens": losses.sum() / tokens.sum(),
        "the mean of micro-batch means": float(np.mean(losses.sum(axis=1) / tokens.sum(axis=1))),
        "the mean of row (or rank) means": float(np.mean(losses / tokens)),
        "a sum": losses.sum(),
    }
    details = []
    for bundle in pair.bundles:
        loss = bundle.facts["first_step"]["loss"]
        name = min(means, key=lambda words: abs(means[words] - loss))
        details.append(f"{bundle.name}: loss {loss:.6f}, nearest to {name} ({means[name]:.6f})")
    return Rung(
        number,
        LOSSES,
        "different",
        "Every row's loss agrees, the loss of the step does not.",
        measures,
        place="step 1",
        cause="the loss is normalised in another way: " + "; ".join(details),
        details=tuple(details),
    )


def gradient_rung(number: int, pair: Pair) -> Rung:
    """Relative error and cosine of every LoRA matrix's gradient that both kept."""
    one, other = pair.arrays("gradients")
    names = sorted((one.keys() & other.keys()) - set(FACTS))
    errors = {name: relative_norm(one[name], other[name]) for name in names}
    cosines = {name: 1 - cosine(one[name], other[name]) for name in names}
    worst, aslant = worst_name(errors), worst_name(cosines)
    measures = (
        pair.measure("largest relative error of a gradient", "gradient", errors[worst], module(worst)),
        pair.measure("largest 1 - cosine of a gradient", "gradient_cosine", cosines[aslant], module(aslant)),
    )
    limit = pair.limits["gradient"].value
    if all(measure.holds for measure in measures):
        total = len(pair.first.facts["first_step"]["gradient_norms"])
        return same_rung(number, GRADIENTS, f"Gradients of {len(names)} of {total} LoRA matrices agree.", measures)
    return Rung(
        number,
        GRADIENTS,
        "different",
        f"{sum(not value <= limit for value in errors.values())} of {len(names)} gradients differ.",
        measures,
        place=module(worst),
        cause=_gradient_cause(one, other, names, cosines),
        details=tuple(
            f"{name}: relative error {errors[name]:.2e}, 1 - cosine {cosines[name]:.2e}" for name in names[:20]
        ),
    )


def _gradient_cause(
    one: Mapping[str, Any], other: Mapping[str, Any], names: list[str], cosines: Mapping[str, float]
) -> str:
    norms = np.array([[np.linalg.norm(each[name].astype(np.float64)) for name in names] for each in (one, other)])
    ratios = norms[1] / np.maximum(norms[0], np.finfo(np.float64).tiny)
    if max(cosines.values()) < EVEN**2 and np.ptp(ratios) < EVEN * ratios.mean():
        return (
            f"every gradient is {ratios.mean():.4g} times the other side's: the loss is normalised in another way "
            "before the backward pass, or a loss scale is not taken off"
        )
    if max(cosines.values()) > EVEN:
        return "gradients point elsewhere: other rows, micro-batches weighted in another way, or dropout"
    return (
        "losses agree and gradients do not: the backward pass or the accumulation weighs micro-batches in another way"
    )


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The cosine between two arrays; 1 where both are zero."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    sizes = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not all(sizes):
        return 1.0 if not any(sizes) else 0.0
    return float(a @ b) / (sizes[0] * sizes[1])


def module(name: str) -> str:
    """A PEFT name without what every one of them has."""
    return name.removeprefix("base_model.model.model.").removesuffix(".weight")
