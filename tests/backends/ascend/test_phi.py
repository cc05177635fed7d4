"""Our Phi network computes what transformers' does; MindFormers' Trainer trains it in tests/parity/test_ladder.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mindspore", reason="the ascend extra is not installed")
torch = pytest.importorskip("torch", reason="compares with transformers")

from tests.jobs import make_job
from tests.tiny_models import save_tiny_model
from twintune.backends import load_backend
from twintune.backends.ascend import runtime
from twintune.backends.ascend.profile import training_config
from twintune.backends.job import TrainJob
from twintune.errors import UserError

runtime.import_quietly()

LOGITS = 1e-5
LOSS = 1e-6
GRADIENT = 1e-5  # of the largest number of its matrix
ROWS = [[1, 40, 41, 42, 43, 44, 45], [1], [1, *range(20, 49)]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("phi"), "phi", steps=2)


@pytest.mark.parametrize("groups", [2, 4])
def test_logits_equal_transformers(tmp_path: Path, groups: int) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "model", "phi", num_key_value_heads=groups)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    model = load_backend("ascend").load_model(folder, None, pad_token_id=0, device="cpu", dtype="float32")
    for logits, row in zip(model.logits(ROWS), ROWS, strict=True):
        with torch.inference_mode():
            expected = theirs(torch.tensor([row])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)


def test_losses_and_gradients_equal_those_of_the_other_backend(job: TrainJob) -> None:
    ours, theirs = (load_backend(name).open_probe(job).gradients(job.order[0]) for name in ("ascend", "cuda"))
    assert ours.tokens == theirs.tokens
    assert ours.loss == pytest.approx(theirs.loss, abs=LOSS)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        tolerance = GRADIENT * float(np.abs(gradient).max())
        np.testing.assert_allclose(ours.gradients[name], gradient, rtol=0, atol=tolerance, err_msg=name)


def test_a_key_that_only_another_network_reads_is_refused(job: TrainJob) -> None:
    from twintune.backends.ascend.keys import check_keys

    other = replace(job, overrides={"model": {"model_config": {"rms_norm_eps": 1e-5}}})
    with pytest.raises(UserError, match=r"model\.model_config\.rms_norm_eps must be a key that MindFormers reads"):
        check_keys(training_config(other, "cpu"))
