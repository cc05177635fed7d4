"""Rungs 3 and 4: the base weights and the initial adapter as they lie in each network, bit for bit."""

from collections.abc import Mapping
from typing import Any

from twintune.parity.pair import Pair, same_rung
from twintune.parity.verdict import Rung

BASE, INITIAL = "base weights", "initial adapter"
Weights = Mapping[str, Mapping[str, Any]]


def base_rung(number: int, pair: Pair) -> Rung:
    """The sha256 of every base parameter."""
    one, other = pair.facts("base")
    return _rung(number, BASE, one, other, _base_cause)


def initial_adapter_rung(number: int, pair: Pair) -> Rung:
    """The sha256 of every LoRA matrix before training."""
    one, other = pair.facts("initial_adapter")
    return _rung(number, INITIAL, one, other, _adapter_cause)


def _rung(number: int, name: str, one: Weights, other: Weights, cause: Any) -> Rung:
    differing = [key for key in dict.fromkeys([*one, *other]) if _hash(one, key) != _hash(other, key)]
    if not differing:
        return same_rung(number, name, f"{len(one)} parameters equal bit for bit.")
    key = differing[0]
    return Rung(
        number,
        name,
        "different",
        f"{len(differing)} of {len(one)} parameters differ, {key} first.",
        place=key,
        cause=cause(key, differing, one, other),
        details=tuple(_line(key, one.get(key), other.get(key)) for key in differing[:20]),
    )


def _hash(weights: Weights, key: str) -> Any:
    return weights[key]["sha256"] if key in weights else None


def _line(key: str, one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    if one is None or other is None:
        return f"{key}: {'missing' if one is None else 'there'} | {'missing' if other is None else 'there'}"
    if one["shape"] != other["shape"]:
        return f"{key}: shape {one['shape']} | {other['shape']}"
    return f"{key}: norm {one['norm']:.9g} | {other['norm']:.9g}, mean {one['mean']:.6g} | {other['mean']:.6g}"


def _base_cause(key: str, differing: list[str], one: Weights, other: Weights) -> str:
    """What weights that differ most likely come from."""
    if key not in one or key not in other:
        return f"{key} exists on one side only: tied or untied embeddings, or a bias that one side does not build"
    swapped = _swapped_with(key, differing, one, other)
    if swapped:
        return f"{key} of one side is {swapped} of the other: the name map swaps the two"
    if _is_zero(one[key]) != _is_zero(other[key]):
        return f"{key} is all zeros on one side: it was never loaded"
    for mine, theirs in ((one, other), (other, one)):
        embedding = mine.get("model.embed_tokens.weight")
        if (
            key == "lm_head.weight"
            and embedding
            and mine[key]["sha256"] == embedding["sha256"] != theirs[key]["sha256"]
        ):
            return "lm_head equals the embedding on one side only: it is tied there"
    if len(differing) == 1 and _close(one[key], other[key]):
        return f"a single parameter differs a little: {key} was changed, damaged or rounded through another dtype"
    if all(_close(one[name], other[name]) for name in differing if name in one and name in other):
        return "every difference is small: one side went through another dtype, or holds another version of the weights"
    return "the two sides load other weights: compare the model folders and the name map"


def _adapter_cause(key: str, differing: list[str], one: Weights, other: Weights) -> str:
    if key not in one or key not in other:
        return f"{key} exists on one side only: another lora.target_modules"
    if one[key]["shape"] != other[key]["shape"]:
        return "the matrices have other shapes: another lora.r, or A and B are swapped or transposed"
    if all(".lora_A." in name for name in differing) and len(differing) == sum(".lora_A." in name for name in one):
        return "every A differs and every B is zero: each side drew its own initial adapter"
    if any(".lora_B." in name and _is_zero(one[name]) != _is_zero(other[name]) for name in differing if name in one):
        return "B is not zero on one side: A and B are swapped, or that side starts from an adapter that was trained"
    return "the two sides start from other adapters: give both the same initial adapter file"


def _swapped_with(key: str, differing: list[str], one: Weights, other: Weights) -> str:
    for name in differing:
        if name != key and name in other and one[key]["sha256"] == other[name]["sha256"]:
            return name
    return ""


def _is_zero(weight: Mapping[str, Any]) -> bool:
    return bool(weight["norm"] == 0.0)


def _close(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(abs(one["norm"] - other["norm"]) <= 1e-2 * max(one["norm"], 1e-30))
