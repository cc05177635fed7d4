"""What is known of a device by its name: how fast it can compute, without sparsity, and its memory."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# TFLOP/s in bfloat16 and float16, and in float32 without TF32. Nvidia's data sheets of A100, H100 and H200; for Ascend
# 910B cube cores x 2 x 16^3 x 1.8 GHz, as no sheet was found: 24 cores, or 20 in the 910B3 and 910B4.
PEAK_TFLOPS: dict[str, tuple[float, float | None]] = {
    "A100": (312.0, 19.5),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.4, 66.9),
    "H200 NVL": (835.0, 60.0),
    "H200": (989.4, 66.9),
    "910B3": (295.0, None),
    "910B4": (295.0, None),
    "910B": (354.0, None),
}


# GiB, of those whose driver tells it late.
MEMORY_GIB = {"910B4": 32, "910B": 64}


def peak_flops(name: str, dtype: str) -> float | None:
    """FLOP/s that a device reaches at most, by the name that its driver gives; None where it is not known."""
    half, single = _by_name(PEAK_TFLOPS, name) or (None, None)
    tera = single if dtype == "float32" else half
    return None if tera is None else tera * 1e12


def known_memory(name: str) -> int | None:
    """Bytes of a device's memory by its name; None where it is not known."""
    gib = _by_name(MEMORY_GIB, name)
    return None if gib is None else gib * 2**30


def _by_name(table: Mapping[str, Value], name: str) -> Value | None:
    """What stands under the longest key that is part of a name."""
    longest = max((known for known in table if known in name), key=len, default=None)
    return None if longest is None else table[longest]
