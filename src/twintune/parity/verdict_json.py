"""A verdict for machines: one JSON object whose keys stay."""

import json
import math
from dataclasses import asdict
from typing import Any

from twintune.parity.verdict import Rung, Verdict
from twintune.parity.wording import conclusion, outcome

SCHEMA_VERSION = 1


def verdict_json(verdict: Verdict) -> str:
    """The whole verdict as JSON text with a final newline; a number that is not finite is null.

    Keys are never renamed nor taken away within a `schema_version`; new ones may come.
    """
    difference = verdict.first_difference
    values = {
        "schema_version": SCHEMA_VERSION,
        "same": verdict.same,
        "outcome": outcome(verdict),
        "sentence": conclusion(verdict),
        "first_difference": None if difference is None else difference.number,
        "sides": [asdict(side) | {"versions": dict(side.versions)} for side in verdict.sides],
        "rungs": [_rung(rung) for rung in verdict.rungs],
        "job": dict(verdict.job),
        "stage_errors": {name: dict(errors) for name, errors in verdict.stage_errors.items()},
        "tolerances": {
            name: {"limit": limit, "source": source} for name, (limit, source) in verdict.tolerances.items()
        },
    }
    text = json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate, which UTF-8 refuses, gets the one spelling that JSON has for it: \ud800.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _rung(rung: Rung) -> dict[str, Any]:
    measures = [asdict(measure) | {"holds": measure.holds} for measure in rung.measures]
    return asdict(rung) | {"measures": measures}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
