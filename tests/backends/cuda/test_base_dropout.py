from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

from tests.tiny_models import save_tiny_model
from twintune.backends.cuda.model import load_base


@pytest.mark.parametrize(
    ("family", "dropouts"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("phi", {"attention_dropout": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}),
    ],
)
def test_the_base_drops_nothing_in_training(tmp_path: Path, family: str, dropouts: dict[str, float]) -> None:
    """Phi-2's config.json says resid_pdrop 0.1, and MindFormers' networks have no such dropout."""
    model = load_base(save_tiny_model(tmp_path / "model", family, **dropouts), "cpu", "float32")
    row = torch.arange(1, 20)[None]
    evaluated = model(row).logits
    assert torch.equal(model.train()(row).logits, evaluated)
