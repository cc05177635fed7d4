"""QLoRA is the same job on both backends: the same codes, and from them the same losses, gradients and texts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.jobs import Recorder, make_job
from tests.parity.jobs import Kind, machine, write_recipe
from twintune.backends import load_backend, missing_packages
from twintune.backends.job import Lora, Quantization
from twintune.parity.bundle import Bundle
from twintune.parity.ladder import compare
from twintune.parity.record import Settings, record
from twintune.recipe import load_recipe

MISSING = [*missing_packages("ascend"), *missing_packages("cuda")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs both backends, without {', '.join(MISSING)}"),
    # peft 0.21 asks transformers 5 for gradient checkpointing by its old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

NF4 = Quantization(double_quant=False)
LOSS = 1e-5  # of a step, float32; the promise is 1e-4
STEPS = 20


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(first - second) for first, second in zip(one, other, strict=True))


def test_losses_of_llama(tmp_path: Path) -> None:
    """Three linears have a LoRA around the codes, the others have not."""
    lora = Lora(4, 8, 0.0, ("q_proj", "v_proj", "gate_proj"))
    sides = []
    for name in ("cuda", "ascend"):
        job = make_job(tmp_path / name, accumulation=2, layers=1, lora=lora, quantization=NF4)
        job.output_dir.mkdir()
        recorder = Recorder()
        load_backend(name).train(job, recorder)
        assert len(recorder.steps) == STEPS
        sides.append(recorder.steps)
    cuda, ascend = sides
    difference = largest_difference([step.loss for step in cuda], [step.loss for step in ascend])
    norms = largest_difference([step.grad_norm for step in cuda], [step.grad_norm for step in ascend])
    print(f"losses: {difference:.1e}, gradient norms: {norms:.1e}")
    assert cuda[-1].loss < cuda[0].loss - 0.1
    assert difference <= LOSS
    assert norms <= 1e-4


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """The riddles' job in small, one layer deep: every linear has a bias, absmax is quantized too."""
    folder = tmp_path_factory.mktemp("phi")
    recipe = write_recipe(folder, Kind("phi", {"num_key_value_heads": 4, "num_hidden_layers": 1}, accumulation=2))
    keys = [
        "model.load_in_4bit=true",
        "model.bnb_4bit_use_double_quant=true",
        "lora.target_modules=[q_proj, k_proj, v_proj, dense, fc1, fc2]",
    ]
    settings = Settings(steps=STEPS, prompts=2)
    cuda = record(load_recipe(recipe, [*machine("cuda"), *keys]), folder / "cuda", settings)
    ascend = record(load_recipe(recipe, [*machine("ascend"), *keys]), folder / "ascend", settings)
    return cuda, ascend


def test_the_ladder_of_phi(phi: tuple[Bundle, Bundle]) -> None:
    verdict = compare(*phi)
    statuses = {rung.name: rung.status for rung in verdict.rungs}
    assert statuses.pop("merged weights") == "not measured"
    assert set(statuses.values()) == {"same"}, [rung.summary for rung in verdict.rungs]
    assert verdict.job["base weights"] == "linear layers in NF4, absmax in 8 bits, double quantization"


def test_losses_of_phi(phi: tuple[Bundle, Bundle]) -> None:
    cuda, ascend = ([step.loss for step in bundle.steps] for bundle in phi)
    assert len(cuda) == STEPS
    difference = largest_difference(cuda, ascend)
    print(f"losses: {difference:.1e}")
    assert difference <= LOSS
