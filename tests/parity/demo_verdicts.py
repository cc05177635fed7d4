"""Verdicts as a comparison would make them, for the reports: one that holds, one that does not, one that is hostile."""

import math
from dataclasses import replace

from twintune.backends.job import Step
from twintune.parity.verdict import Measure, Rung, Side, Status, Verdict

LIMITS = {
    "hidden": (1e-4, "largest error among 8 repeats with perturbed rounding, 2 layers, times 4"),
    "logits": (1e-4, "as hidden states"),
    "loss": (1e-5, "50 steps of a tiny model in float32"),
    "mean_signed_residual": (1e-6, "a tenth of the limit of one step's loss"),
}
RUNGS: tuple[tuple[str, str, tuple[Measure, ...]], ...] = (
    ("environment and resolved recipe", "The recipes are the same; 2 versions differ.", ()),
    ("rows", "1,204 rows have the same ids and labels, byte for byte.", (Measure("rows that differ", 0.0, 0.0),)),
    ("base weights", "21 tensors have the same hash.", (Measure("tensors that differ", 0.0, 0.0),)),
    ("initial adapter", "16 matrices are the same.", (Measure("matrices that differ", 0.0, 0.0),)),
    (
        "logits and hidden states",
        "8 rows were compared at every position.",
        (
            Measure("largest relative error of logits", 3.1e-6, 1e-4, "row 7, position 41"),
            Measure("largest relative error of a hidden state", 9.7e-6, 1e-4, "layers.11, with adapter"),
        ),
    ),
    (
        "loss and trained tokens",
        "The loss of 16 rows was compared.",
        (
            Measure("largest difference of a row's loss", 2.4e-7, 1e-5, "row 12"),
            Measure("rows whose count of trained tokens differs", 0.0, 0.0),
        ),
    ),
    (
        "gradients",
        "16 matrices were compared.",
        (Measure("largest relative error", 4.8e-6, 1e-4, "layers.0.self_attn.q_proj"),),
    ),
    (
        "one optimizer step",
        "Matrices and learning rates agree.",
        (Measure("largest difference of a learning rate", 0.0, 1e-12),),
    ),
    (
        "loss and gradient norm of all steps",
        "All steps agree, and no side is above the other in the mean.",
        (
            Measure("largest difference of a loss", 2.4e-6, 1e-5, "step 19"),
            Measure("mean signed residual of the loss", 1.9e-7, 1e-6),
            Measure("first loss", 4.8281),
        ),
    ),
    (
        "final adapter",
        "Each side loaded the other's adapter.",
        (Measure("largest difference of logits", 6.0e-6, 1e-4),),
    ),
    ("generated text", "20 greedy texts are the same, token by token.", (Measure("prompts that differ", 0.0, 0.0),)),
    ("merged weights", "Adapter against merged logits.", (Measure("largest difference of logits", 1.1e-6, 1e-4),)),
)


def make_steps(count: int, shift: float = 0.0, wave: float = 0.0) -> tuple[Step, ...]:
    """A falling loss with a wiggle; `shift` and `wave` set a second run off from the first."""
    return tuple(
        Step(
            step,
            0.5 + 4.3 * math.exp(-3 * step / count) + 0.12 * math.sin(step * 1.7) + shift + wave * math.sin(step * 2.3),
            1.1 + 0.6 * math.cos(step * 0.9) * math.exp(-step / count) + 10 * shift,
            1e-4 * (1 - step / count),
            300 + step % 7,
            0.4,
        )
        for step in range(1, count + 1)
    )


def make_sides(count: int, shift: float = 1.5e-7, wave: float = 2e-6) -> tuple[Side, Side]:
    """An ascend side and a cuda side with logs of `count` steps."""
    shared = {"python": "3.11.9", "transformers": "4.57.1", "numpy": "1.26.4"}
    ascend, cuda = {"mindspore": "2.9.0", "mindformers": "1.9.0"}, {"torch": "2.13.0", "peft": "0.21.0"}
    return (
        Side("recorded-on-npu", "ascend", "npu", "float32", shared | ascend, make_steps(count)),
        Side("recorded-on-gpu", "cuda", "cuda", "float32", shared | cuda, make_steps(count, shift, wave)),
    )


def make_stage_errors(layers: int, broken_from: int | None = None) -> dict[str, dict[str, float]]:
    """Errors that grow with depth, and jump at a layer if one is named."""
    stages = ["embed_tokens", *(f"layers.{number}" for number in range(layers)), "norm", "logits"]

    def error(number: int, factor: float) -> float:
        jump = 4e4 if broken_from is not None and number > broken_from else 1.0
        return 0.0 if number == 0 else factor * 2e-7 * (1 + number) * jump * (1.2 + math.sin(number))

    return {
        name: {stage: error(number, factor) for number, stage in enumerate(stages)}
        for name, factor in (("without adapter", 1.0), ("with adapter", 1.7))
    }


def make_rungs(first_difference: int | None = None) -> tuple[Rung, ...]:
    """All twelve; from the first difference on a rung is not measured."""
    rungs = []
    for number, (name, summary, measures) in enumerate(RUNGS, start=1):
        status: Status = "same"
        if first_difference is not None and number > first_difference:
            status, measures = "not measured", ()
            summary = f"Not measured, since rung {first_difference} does not hold."
        rungs.append(Rung(number, name, status, summary, measures))
    return tuple(rungs)


def passing_verdict(steps: int = 20, layers: int = 12) -> Verdict:
    """Twelve rungs that hold."""
    job = {
        "model": "llama, 12 layers, hidden 64",
        "data": "school_math.jsonl, sha256 5d1f…9c20",
        "template": "vicuna_v1.1",
        "rows": "1,204, none cut",
        "LoRA": "r 8, alpha 16, q_proj k_proj v_proj o_proj",
        "optimizer": "AdamW, learning rate 1e-4, weight decay 0",
        "schedule": f"cosine, 2 warm-up steps of {steps}",
    }
    return Verdict(make_sides(steps), make_rungs(), job, make_stage_errors(layers), LIMITS)


def failing_verdict(steps: int = 20, layers: int = 12) -> Verdict:
    """Rung 5 differs from layer 3 on; what is above it was not measured."""
    rungs = list(make_rungs(5))
    rungs[4] = replace(
        rungs[4],
        status="different",
        summary="The logits of row 7 differ by 0.61 of the largest; every layer from layers.3 on differs.",
        measures=(
            Measure("largest relative error of logits", 0.61, 1e-4, "row 7, position 41"),
            Measure("largest relative error of a hidden state", 0.014, 1e-4, "layers.3, with adapter"),
        ),
        place="layers.3, row 7, position 41 (token 42 of 118)",
        cause="the attention of this layer sees another rotation: compare rope_theta and rope_scaling",
        details=(
            "row 7, tokens 38 to 44, and the error at each:",
            "  小明  2.1e-07",
            "  有三个苹果，  3.3e-07",
            "  吃了  4.0e-01  <-- first above 1e-04",
            "  1 个  6.1e-01",
        ),
    )
    verdict = passing_verdict(steps, layers)
    return replace(
        verdict,
        sides=make_sides(steps, 3e-2, 2e-2),
        rungs=tuple(rungs),
        stage_errors=make_stage_errors(layers, broken_from=3),
    )


def incomplete_verdict() -> Verdict:
    """No difference, but no texts to compare."""
    rungs = tuple(
        replace(rung, status="not measured", summary="The bundle holds no texts.", measures=())
        if rung.number == 11
        else rung
        for rung in make_rungs()
    )
    return replace(passing_verdict(), rungs=rungs)


EVIL = "</pre><script>alert(1)</script>|`*_[x](y) \x1b[31m\x00\ud800\u202e\ufffe & \"' {{ 7 * 7 }} ]]>"


def hostile_verdict() -> Verdict:
    """The failing one with hostile text in every place that text has, and numbers that are none."""
    evil = failing_verdict()
    text = EVIL + "极长" * 400
    measure = Measure(text, math.nan, 1e-4, text)
    rungs = tuple(
        replace(rung, name=text, summary=text, place=text, cause=text, details=(text, "a\nb"), measures=(measure,))
        for rung in evil.rungs
    )
    steps = tuple(
        replace(step, loss=math.nan if step.step in (5, 6) else step.loss, grad_norm=math.inf)
        for step in make_steps(20)
    )
    first, second = evil.sides
    sides = (
        replace(first, name=text, backend=text, device=text, dtype=text, versions={text: text}, steps=steps),
        replace(second, steps=second.steps[:12]),
    )
    errors = {
        text: {text: math.nan, "layers.0": 0.0, "layers.1": 1e300, "layers.2": -1.0},
        EVIL: {"layers.0": math.inf},
    }
    return replace(
        evil,
        sides=sides,
        rungs=rungs,
        job={text: text},
        stage_errors=errors,
        tolerances={"loss": (math.nan, text), text: (math.inf, text)},
    )
