"""Where faults are planted: modules of the cuda backend and of the recorder, patched for one recording."""

from importlib import import_module
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
record: Any = import_module("twintune.parity.record")
plan: Any = import_module("twintune.training_plan")


def cuda(name: str) -> Any:
    """A module of the cuda backend; torch is imported here and not before."""
    return import_module(f"twintune.backends.cuda.{name}")
