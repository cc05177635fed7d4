"""Rungs 8 and 9: one optimizer step, the learning rates of all steps, and the series of losses and gradient norms."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.backends.job import Schedule, Step
from twintune.parity.bundle import RATES, Bundle
from twintune.parity.gradient_rungs import cosine, module
from twintune.parity.pair import Pair, largest, relative_norm, same_rung, worst_name
from twintune.parity.verdict import Measure, Rung
from twintune.schedule import learning_rates

ONE_STEP, SERIES = "one optimizer step, learning rates", "losses and gradient norms"
RATE = 1e-6  # of the peak: a backend may compute its learning rate in float32
ALIGNED = 0.999  # cosine of two updates that differ in size alone
EVEN = 0.05  # sizes that differ by less say nothing


def one_step_rung(number: int, pair: Pair) -> Rung:
    """Learning rates first, then every kept LoRA matrix after the first step that moves it."""
    failed = _failed(pair)
    if failed:
        return Rung(number, ONE_STEP, "different", failed, place="step 1", cause=failed)
    rates = [_rates(bundle) for bundle in pair.bundles]
    count = min(map(len, rates))
    errors = np.abs(rates[1][:count] - rates[0][:count]) / rates[0].max()
    first = int(np.argmax(errors > RATE))
    rate = Measure(
        "largest difference of a learning rate, in peak rates", float(errors.max()), RATE, f"step {first + 1}"
    )
    if not rate.holds:
        details = tuple(
            f"step {k + 1}: {rates[0][k]:.6e} | {rates[1][k]:.6e}" for k in range(first, min(first + 5, count))
        )
        return Rung(
            number,
            ONE_STEP,
            "different",
            f"Learning rates differ from step {first + 1} on.",
            (rate,),
            place=f"step {first + 1}",
            cause=_rate_cause(pair, rates, count),
            details=details,
        )
    return _update_rung(number, pair, rate, count)


def _rates(bundle: Bundle) -> NDArray[np.float64]:
    """Those that the run took, then those of the rest of its schedule."""
    taken = np.array([step.learning_rate for step in bundle.steps])
    rates: NDArray[np.float64] = np.concatenate([taken, bundle.arrays("one_step")[RATES][len(taken) :]])
    return rates


def _failed(pair: Pair) -> str:
    for bundle in pair.bundles:
        if "training_failed" in bundle.facts:
            return f"training failed on {bundle.name}: {bundle.facts['training_failed'][0]}"
    return ""


def _rate_cause(pair: Pair, rates: list[NDArray[np.float64]], count: int) -> str:
    """Try the schedule with its warm-up rounded otherwise."""
    peak = pair.first.facts["recipe"]["train"]["learning_rate"]
    schedule = Schedule(**pair.first.facts["schedule"])
    for bundle, given in zip(pair.bundles, rates, strict=True):
        for warmup in (schedule.warmup_steps - 1, schedule.warmup_steps + 1):
            if warmup < 0:
                continue
            other = replace(schedule, warmup_steps=warmup)
            if np.allclose(learning_rates(other, peak)[:count], given[:count], rtol=0, atol=RATE * peak):
                wanted = schedule.warmup_steps
                return f"{bundle.name} warms up for {warmup} steps, not {wanted}: its warm-up is rounded otherwise"
    return "the schedules differ: compare lr_scheduler_type, warm-up and the number of steps"


def _update_rung(number: int, pair: Pair, rate: Measure, count: int) -> Rung:
    one, other = pair.arrays("one_step")
    step = _moving_step(pair)
    peak = pair.first.steps[step - 1].learning_rate
    names = sorted(name.removeprefix("after.") for name in one.keys() & other.keys() if name.startswith("after."))
    errors = {name: largest(one[f"after.{name}"], other[f"after.{name}"]) / peak for name in names}
    matrices = [_update(pair, one, errors, kind, peak) for kind in ("lora_A", "lora_B")]
    updates = (*matrices, _change(pair, one, other, names))
    if all(update.holds for update in updates):
        total = len(pair.first.facts["one_step"]["after"])
        summary = f"{len(names)} of {total} LoRA matrices agree after step {step}; so do {count} learning rates."
        return same_rung(number, ONE_STEP, summary, (rate, *updates))
    broken = next(update for update in reversed(updates) if not update.holds)
    kind = broken.place.rpartition(".")[2]
    return Rung(
        number,
        ONE_STEP,
        "different",
        f"{kind} matrices differ after step {step}.",
        (rate, *updates),
        place=f"step {step}, {broken.place}",
        cause=_update_cause(pair, one, other, broken.place, kind),
        details=tuple(f"{name}: {errors[name]:.3g} learning rates" for name in names if f".{kind}." in name)[:20],
    )


def _update(pair: Pair, arrays: Mapping[str, Any], errors: Mapping[str, float], kind: str, peak: float) -> Measure:
    """The worst matrix of a kind. While B is zero A has no gradient: decay alone moves it, float32 alone rounds it."""
    names = [name for name in errors if f".{kind}." in name]
    worst = worst_name({name: errors[name] for name in names})
    rounding = 4 * float(np.finfo(np.float32).eps) * max(float(np.abs(arrays[f"after.{name}"]).max()) for name in names)
    limit = pair.limits["one_step"].value if kind == "lora_B" else rounding / peak
    title = f"largest difference of a {kind} matrix after the step, in learning rates"
    return Measure(title, errors[worst], limit, module(worst))


def _change(pair: Pair, one: Mapping[str, Any], other: Mapping[str, Any], names: list[str]) -> Measure:
    """The worst relative error of a B's change as a whole, where single numbers may be a matter of rounding."""
    errors = {
        name: relative_norm(*(each[f"after.{name}"] - each[f"before.{name}"] for each in (one, other)))
        for name in names
        if ".lora_B." in name
    }
    worst = worst_name(errors)
    return pair.measure("largest relative error of a lora_B matrix's change", "update", errors[worst], module(worst))


def _update_cause(pair: Pair, one: Mapping[str, Any], other: Mapping[str, Any], place: str, kind: str) -> str:
    """Compare the updates of the matrix that differs."""
    name = next(name.removeprefix("after.") for name in one if name.startswith("after.") and f"{place}." in name)
    if kind == "lora_A":
        moved = [largest(each[f"before.{name}"], each[f"after.{name}"]) for each in (one, other)]
        how = "is off on one side" if min(moved) == 0 else "has another strength, or is not decoupled on one side"
        return f"only A differs, which moves by weight decay alone: weight decay {how}"
    updates = [each[f"after.{name}"].astype(np.float64) - each[f"before.{name}"] for each in (one, other)]
    sizes = [float(np.linalg.norm(update)) for update in updates]
    if min(sizes) > 0 and cosine(*updates) > ALIGNED:
        ratio = sizes[1] / sizes[0]
        if abs(ratio - 1) < EVEN:
            return "updates are alike but for details: other betas, another epsilon, or moments in another dtype"
        return (
            f"updates point the same way and the second side's are {ratio:.3g} times as large: Adam's bias correction, "
            "its epsilon, or the learning rate is applied in another way"
        )
    clipped = any(step.grad_norm > _max_grad_norm(pair) for step in pair.first.steps[: _moving_step(pair)])
    words = "clipped in another way (by value, by matrix)" if clipped else "changed before the update"
    return f"updates point elsewhere: gradients are {words}, or another optimizer, other betas or epsilon"


def _max_grad_norm(pair: Pair) -> float:
    return float(pair.first.facts["recipe"]["train"]["max_grad_norm"])


def _moving_step(pair: Pair) -> int:
    """The first step that moves the adapter."""
    return int(pair.first.facts["one_step"]["step"])


def series_rung(number: int, pair: Pair) -> Rung:
    """Every step's loss, gradient norm and count of tokens, and the mean of the losses' signed residual."""
    steps = list(zip(pair.first.steps, pair.second.steps, strict=False))
    losses = np.array([other.loss - one.loss for one, other in steps])
    norms = np.array([abs(other.grad_norm - one.grad_norm) / max(one.grad_norm, 1e-12) for one, other in steps])
    tokens = next((one.step for one, other in steps if one.tokens != other.tokens), None)
    measures = (
        pair.measure("largest difference of a loss", "loss", *_largest_step(np.abs(losses))),
        pair.measure("largest relative difference of a gradient norm", "grad_norm", *_largest_step(norms)),
        pair.measure(
            "mean signed residual of the losses", "mean_signed_residual", abs(float(losses.mean())), "all steps"
        ),
    )
    if tokens is None and all(measure.holds for measure in measures):
        return same_rung(number, SERIES, f"{len(steps)} steps agree, and their residual leans to no side.", measures)
    if tokens is not None:
        place, cause = tokens, "a step trains on another number of tokens: rows are dropped, repeated or padded"
    else:
        above = (np.abs(losses) > pair.limits["loss"].value) | (norms > pair.limits["grad_norm"].value)
        above |= np.isnan(losses) | np.isnan(norms)
        place = int(np.argmax(above)) + 1 if above.any() else 0
        cause = _series_cause(pair, place, steps, losses, norms)
    return Rung(
        number,
        SERIES,
        "different",
        f"The runs part at step {place}." if place else "The runs drift to one side.",
        measures,
        place=f"step {place}" if place else "all steps",
        cause=cause,
        details=tuple(_step_line(*steps[k]) for k in range(max(0, place - 2), min(len(steps), place + 3))),
    )


def _largest_step(values: NDArray[np.float64]) -> tuple[float, str]:
    place = int(np.argmax(np.where(np.isnan(values), np.inf, values)))
    return float(values[place]), f"step {place + 1}"


def _series_cause(
    pair: Pair, place: int, steps: list[tuple[Step, Step]], losses: NDArray[np.float64], norms: NDArray[np.float64]
) -> str:
    if place == 0:
        return "no step is far off, but the residual is one-sided: a rounding that always goes one way"
    clipped = _max_grad_norm(pair)
    before = [one.grad_norm for one, _ in steps[: place - 1]]
    if place > 1 and any(norm > clipped for norm in before):
        return (
            f"one update after gradients above max_grad_norm {clipped} the runs part: clipping differs (by value, by "
            "matrix, or not at all), or an optimizer's second moment does"
        )
    if place == 1:
        return "the first step differs, though its gradients agreed: dropout is on, or the norm is of other matrices"
    return (
        f"step {place} is the first to differ: what is carried from step to step does (Adam's moments and their bias "
        "correction, weight decay, accumulation that is not reset)"
    )


def _step_line(one: Step, other: Step) -> str:
    return (
        f"step {one.step}: loss {one.loss:.7f} | {other.loss:.7f} ({other.loss - one.loss:+.1e}), gradient norm "
        f"{one.grad_norm:.6f} | {other.grad_norm:.6f}, {one.tokens} | {other.tokens} tokens"
    )
