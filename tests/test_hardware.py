import pytest

from twintune.hardware import known_memory, peak_flops


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA H200", "float16", 989.4),
        ("Ascend910B2", "bfloat16", 354.0),
        ("Ascend910B3", "bfloat16", 295.0),
    ],
)
def test_the_longest_name_counts(name: str, dtype: str, tera: float) -> None:
    assert peak_flops(name, dtype) == tera * 1e12


@pytest.mark.parametrize(("name", "dtype"), [("CPU", "float32"), ("Tesla T4", "float16"), ("Ascend910B2", "float32")])
def test_a_peak_that_is_not_known_is_none(name: str, dtype: str) -> None:
    assert peak_flops(name, dtype) is None


def test_memory_is_known_of_npus() -> None:
    assert known_memory("Ascend910B4") == 32 * 2**30
    assert known_memory("Ascend910B1") == 64 * 2**30
    assert known_memory("NVIDIA H100 80GB HBM3") is None  # its driver tells
