"""How far two runs of the same job may be apart, by dtype and measure, and where each limit comes from."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A limit, and the sentence that says where it comes from."""

    value: float
    source: str


def limits(dtype: str) -> Mapping[str, Limit]:
    """The limits of a dtype by measure."""
    values = {
        "logits": 1e-5, "hidden": 1e-5, "row_loss": 1e-5, "gradient": 1e-4, "gradient_cosine": 1e-6,
        "one_step": 1e-2, "loss": 1e-5, "grad_norm": 1e-4, "mean_signed_residual": 2e-6, "adapter": 1e-4,
        "cross_logits": 1e-5, "merged_logits": 1e-5,
    }  # fmt: skip
    return {name: Limit(value, "placeholder") for name, value in values.items()}
