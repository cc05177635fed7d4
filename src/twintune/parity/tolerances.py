"""How far two runs of the same job may be apart, by dtype and measure, and where each limit comes from.

A limit is a factor times the spread that rounding alone makes, times the network's depth over two layers to a power.
Spreads come from repeats of a tiny job whose weights are rounded at random (scripts/derive_tolerances.py, numbers in
tests/golden/tolerances.json). Two real runs hold the very same weights and part less: the two backends were at most
two thirds of a spread apart in float16 (`between` in that file). Half precision shows gross faults only: its rounding
hides an epsilon or a bias, and in a deep network all of a small gradient. To prove a port, compare in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from twintune.errors import UserError

# In float32 faults begin hundreds of spreads away, so that other kernels get room; in half precision they begin at
# three (a halved LoRA scaling, in its gradients), and the factor must stay below.
FACTORS: Mapping[str, float] = {"float32": 4.0, "bfloat16": 1.5, "float16": 1.5}
LAYERS = 2  # of the network whose spreads these are
LEARNING_RATE = 1e-3
SOURCE = "scripts/derive_tolerances.py"

# The largest of all pairs of repeats, for two layers, of both widths, learning rates and backends that were run.
SPREADS: Mapping[str, Mapping[str, float]] = {
    "float32": {
        "logits": 2.67e-06,
        "hidden": 2.88e-06,
        "row_loss": 1.75e-06,
        "gradient": 5.34e-06,
        "one_step": 0.000226,
        "update": 2.01e-05,
        "loss": 2.48e-06,
        "grad_norm": 2.11e-06,
        "mean_signed_residual": 5.16e-07,
        "adapter": 0.0054,
        "cross_logits": 2.49e-06,
        "merged_logits": 4.15e-06,
    },
    "bfloat16": {
        "logits": 0.0967,
        "hidden": 0.0878,
        "row_loss": 0.0612,
        "gradient": 0.181,
        "one_step": 1.99,
        "update": 0.256,
        "loss": 0.0852,
        "grad_norm": 0.0705,
        "mean_signed_residual": 0.00688,
        "adapter": 6.4,
        "cross_logits": 0.0798,
        "merged_logits": 0.0401,
    },
    "float16": {
        "logits": 0.0121,
        "hidden": 0.0121,
        "row_loss": 0.00597,
        "gradient": 0.0258,
        "one_step": 1.07,
        "update": 0.095,
        "loss": 0.00617,
        "grad_norm": 0.00442,
        "mean_signed_residual": 0.00138,
        "adapter": 2.21,
        "cross_logits": 0.0103,
        "merged_logits": 0.00671,
    },
}
# How a spread grows with depth, as a power: a random walk for what sums up forwards, more for what goes back through
# layers. From 2 layers to 8 the golden numbers grow by no more, and to SmolLM2's 30 neither (scripts/derive_depth.py).
GROWTH: Mapping[str, float] = {
    "logits": 0.5,
    "hidden": 0.75,
    "row_loss": 0.5,
    "gradient": 1.25,
    "one_step": 1.0,
    "update": 1.0,
    "loss": 0.5,
    "grad_norm": 1.5,
    "mean_signed_residual": 0.5,
    "adapter": 0.5,
    "cross_logits": 0.75,
    "merged_logits": 0.75,
}
FORWARD = ("logits", "hidden", "cross_logits", "merged_logits")  # SmolLM2's 30 layers spread less than 8 random ones
DEEPEST = 8  # layers up to which these grow
MOST = 1.0  # of a relative error: one as large as the thing itself is no agreement
RELATIVE = (*FORWARD, "gradient", "update", "grad_norm")
# What the project promises of float32, above what rounding alone makes: set, not measured.
PROMISED: Mapping[str, float] = {"loss": 1e-5, "mean_signed_residual": 1e-6}


@dataclass(frozen=True)
class Limit:
    """A limit, and the sentence that says where it comes from."""

    value: float
    source: str


def limits(dtype: str, layers: int = LAYERS, learning_rate: float = LEARNING_RATE) -> Mapping[str, Limit]:
    """The limits of a job by measure.

    logits, hidden, cross_logits, merged_logits: max |a - b| / max |a| over a conversation's positions. row_loss, loss,
    mean_signed_residual: nats, absolute. gradient: ||a - b|| / ||a|| of a LoRA matrix; gradient_cosine: 1 - cosine.
    grad_norm: relative. one_step: largest difference of a number of a LoRA matrix, in learning rates (in half precision
    a tiny gradient's sign is a matter of rounding, and Adam makes a whole learning rate of it: it says little there);
    update: ||a - b|| / ||a|| of a matrix's change in that step. adapter: largest difference, absolute.

    Args:
        dtype: of both runs.
        layers: of the network.
        learning_rate: the schedule's peak, by which differences of the final adapter are counted.

    Raises:
        UserError: for a dtype without limits.
    """
    if dtype not in SPREADS:
        raise UserError(f"bundle: dtype must be {', '.join(SPREADS)}, got {dtype!r}")
    found = {}
    for name, power in GROWTH.items():
        deeper = max(1.0, min(layers, DEEPEST if name in FORWARD else layers) / LAYERS)
        base, source = _two_layers(dtype, name)
        value = base * deeper**power * (learning_rate if name == "adapter" else 1.0)
        found[name] = Limit(value, f"{source}{_grown(name, deeper)}")
        if name in RELATIVE and value > MOST:
            found[name] = Limit(MOST, f"{MOST:g}, as rounding in {dtype} can hide all of it in {layers} layers")
    # From |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: an error of that size turns a vector by no more.
    turned = found["gradient"].value ** 2 / 2
    return found | {
        "gradient_cosine": Limit(turned, "half the square of the gradient's limit: no error so large turns more")
    }


def _two_layers(dtype: str, name: str) -> tuple[float, str]:
    """A limit for two layers, and where it comes from."""
    if dtype == "float32" and name in PROMISED:
        return PROMISED[name], f"promised: {PROMISED[name]:.0e} for two layers"
    factor, spread = FACTORS[dtype], SPREADS[dtype][name]
    return factor * spread, f"{factor:g} x {spread:.3g}, what rounding at random makes in two layers ({SOURCE})"


def _grown(name: str, deeper: float) -> str:
    grown = f", times {deeper:g}^{GROWTH[name]:g} for the depth" if deeper > 1 else ""
    return f"{grown}, times the learning rate" if name == "adapter" else grown
