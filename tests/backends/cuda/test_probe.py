"""The probe of the cuda backend equals plain transformers, PEFT and autograd, and what training does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

import torch
from torch.nn.functional import cross_entropy

from tests.jobs import Recorder, make_job, make_packed_job, packed_rows, random_rows, write_rows
from tests.probe_checks import check_wrong_matrices_are_named
from twintune.backends import Probe
from twintune.backends.cuda import CudaBackend
from twintune.backends.job import Lora, TrainJob
from twintune.converters.adapter import read_adapter, write_adapter
from twintune.converters.names import base_names
from twintune.converters.weights import read_weights
from twintune.errors import UserError
from twintune.models import read_model_config

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = [list(range(3, 3 + length)) for length in (5, 16, 11)]
OUTPUT = 1e-5  # of logits and hidden states, absolute, float32


def with_b(job: TrainJob) -> TrainJob:
    """The job with an initial adapter whose B is not zero: with zeros half of it does nothing."""
    lora, tensors = read_adapter(job.initial_adapter)
    draw = np.random.default_rng(4)
    for name in sorted(tensors):
        if "lora_B" in name:
            tensors[name] = draw.normal(0, 0.05, tensors[name].shape).astype(np.float32)
    folder = job.initial_adapter.with_name("initial_with_b")
    write_adapter(folder, tensors, lora, str(job.model))
    return replace(job, initial_adapter=folder)


def reference(job: TrainJob) -> Any:
    """transformers' model with the job's adapter, as PEFT loads it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(job.model)
    return PeftModel.from_pretrained(base, job.initial_adapter, is_trainable=True)


@pytest.fixture(scope="module", params=["llama", "qwen2", "mistral", "phi"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return with_b(make_job(tmp_path_factory.mktemp(request.param), request.param, accumulation=3))


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return CudaBackend().open_probe(make_job(tmp_path))


def close(ours: NDArray[np.float32], expected: Any, name: str = "logits") -> None:
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=0, atol=OUTPUT, err_msg=name)


def test_forward_equals_transformers(job: TrainJob) -> None:
    model = reference(job).eval()
    decoder = model.get_base_model().get_decoder()
    norm = decoder.final_layernorm if decoder.config.model_type == "phi" else decoder.norm
    for ours, row in zip(CudaBackend().open_probe(job).forward(ROWS), ROWS, strict=True):
        with torch.no_grad():
            output = model(torch.tensor([row]), output_hidden_states=True)
            normed = norm(torch.from_numpy(ours.hidden["layers.1"]))
        embedded, first_layer, last = (states[0] for states in output.hidden_states)
        assert list(ours.hidden) == ["embed_tokens", "layers.0", "layers.1", "norm"]
        close(ours.logits, output.logits[0])
        close(ours.hidden["embed_tokens"], embedded)
        close(ours.hidden["layers.0"], first_layer)
        close(ours.hidden["norm"], last)
        close(normed.numpy(), last, "transformers does not give the last layer's output before the norm")


def test_gradients_equal_autograd_over_the_whole_step(job: TrainJob) -> None:
    numbers = job.order[0]
    ours = CudaBackend().open_probe(job).gradients(numbers)
    model = reference(job)
    sums, counts = [], []
    for number in numbers.ravel():
        ids, labels = (torch.tensor([column]) for column in random_rows()[number])
        logits = model(ids).logits[0, :-1]
        sums.append(cross_entropy(logits, labels[0, 1:], reduction="sum"))
        counts.append(int((labels[0, 1:] != -100).sum()))
    loss = torch.stack(sums).sum() / sum(counts)
    loss.backward()
    assert ours.tokens == sum(counts)
    assert ours.loss == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_array_equal(ours.row_tokens, np.reshape(counts, numbers.shape))
    np.testing.assert_allclose(ours.row_losses, np.reshape([one.item() for one in sums], numbers.shape), rtol=1e-6)
    expected = {
        name.replace(".default.weight", ".weight"): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert ours.gradients.keys() == expected.keys()
    for name, gradient in ours.gradients.items():
        assert gradient.dtype == np.float32
        error = np.linalg.norm(gradient - expected[name]) / np.linalg.norm(expected[name])
        assert error <= 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("make", [make_job, make_packed_job])
def test_gradients_are_those_of_the_first_step_with_its_dropout(tmp_path: Path, make: Any) -> None:
    job = with_b(make(tmp_path, accumulation=3, steps=1, lora=Lora(4, 8, 0.3, ("q_proj", "v_proj"))))
    probe = CudaBackend().open_probe(job)
    probe.forward(ROWS)  # evaluation mode before, dropout after
    measured = probe.gradients(job.order[0])
    recorder = Recorder()
    CudaBackend().train(job, recorder)
    (step,) = recorder.steps
    norm = np.sqrt(sum(float(np.square(gradient).sum()) for gradient in measured.gradients.values()))
    assert (measured.loss, measured.tokens) == (step.loss, step.tokens)
    assert norm == pytest.approx(step.grad_norm, rel=1e-6)
    assert measured.row_losses.sum() / measured.tokens == measured.loss


def test_conversations_alone_pass_through_the_attention_of_packed_rows(tmp_path: Path) -> None:
    packed = with_b(make_packed_job(tmp_path))
    plain = replace(packed, packed=False)
    ours, expected = (CudaBackend().open_probe(job).forward(ROWS) for job in (packed, plain))
    for one, other in zip(ours, expected, strict=True):
        close(one.logits, torch.from_numpy(other.logits))
    measured = CudaBackend().open_probe(packed).gradients(np.array([[0, 1]]))
    tokens = [row.trained_tokens for row in packed_rows()[:2]]
    assert measured.row_tokens.tolist() == [tokens]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_is_what_lies_in_the_network(tmp_path: Path, dtype: str) -> None:
    job = make_job(tmp_path, "qwen2", dtype=dtype)
    config = read_model_config(job.model)
    stored = dict(read_weights(job.model, config))
    base = dict(CudaBackend().open_probe(job).base())
    assert list(base) == list(base_names(config))
    assert "lm_head.weight" not in base  # tied to the embeddings
    for name, tensor in base.items():
        assert tensor.dtype == np.float32
        rounded = torch.from_numpy(stored[name]).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(tensor, rounded, err_msg=name)


def test_bfloat16_is_measured_as_it_computes(tmp_path: Path) -> None:
    job = with_b(make_job(tmp_path))
    exact, half = (CudaBackend().open_probe(replace(job, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    for one, other in zip(exact.forward(ROWS), half.forward(ROWS), strict=True):
        assert other.logits.dtype == other.hidden["layers.0"].dtype == np.float32
        error = np.abs(one.logits - other.logits).max() / np.abs(one.logits).max()
        assert 1e-4 < error < 0.1, error  # bfloat16 has 8 significant bits
    losses = [probe.gradients(job.order[0]).loss for probe in (exact, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_weights_are_put_in_and_back(probe: Probe) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    (before,) = probe.forward(ROWS[:1])
    own = dict(probe.base())[name]
    probe.put_base([(name, own + np.float32(0.1))])
    (changed,) = probe.forward(ROWS[:1])
    assert np.abs(changed.logits - before.logits).max() > 0.01
    np.testing.assert_array_equal(changed.hidden["layers.0"], before.hidden["layers.0"])
    np.testing.assert_array_equal(dict(probe.base())[name], own + np.float32(0.1))
    probe.put_base([(name, own)])
    np.testing.assert_array_equal(probe.forward(ROWS[:1])[0].logits, before.logits)


def test_an_adapter_is_put_in(probe: Probe) -> None:
    (before,) = probe.forward(ROWS[:1])
    tensors = {name: tensor + np.float32(0.01) for name, tensor in probe.adapter().items()}
    probe.put_adapter(tensors)
    for name, tensor in probe.adapter().items():
        np.testing.assert_array_equal(tensor, tensors[name])
    assert np.abs(probe.forward(ROWS[:1])[0].logits - before.logits).max() > 1e-3


def test_wrong_weights_are_named(probe: Probe) -> None:
    strangers = [("model.layers.9.mlp.up_proj.weight", np.zeros(3)), ("model.norm.weight", np.zeros(65))]
    with pytest.raises(UserError) as caught:
        probe.put_base((name, tensor.astype(np.float32)) for name, tensor in strangers)
    unknown, shape = caught.value.messages
    assert "model.layers.9.mlp.up_proj.weight must be there" in unknown
    assert "model.norm.weight must be [65], got a parameter of [64]" in shape


def test_wrong_matrices_are_named(probe: Probe) -> None:
    check_wrong_matrices_are_named(probe)


def test_rows_without_a_trained_token_are_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "masked", [([5, 6, 7], [5, -100, -100])] * 24)
    probe = CudaBackend().open_probe(make_job(tmp_path, rows=rows))
    with pytest.raises(UserError, match=r"rows \[3, 4\] must have a trained token"):
        probe.gradients(np.array([[3, 4]]))


def test_snapshots_are_the_adapter_after_their_steps(tmp_path: Path) -> None:
    job = make_job(tmp_path, steps=4, snapshot_steps=(2, 4))
    CudaBackend().train(job, Recorder())
    stopped = replace(job, order=job.order[:2], output_dir=tmp_path / "stopped", snapshot_steps=())
    CudaBackend().train(stopped, Recorder())
    adapters = [read_adapter(folder)[1] for folder in (job.snapshot(2), job.snapshot(4), job.output_dir / "adapter")]
    (_, early), (_, stop) = read_adapter(job.snapshot(2)), read_adapter(stopped.output_dir / "adapter")
    for name, tensor in adapters[2].items():
        np.testing.assert_array_equal(adapters[1][name], tensor)
        np.testing.assert_array_equal(early[name], stop[name])
    assert any(not np.array_equal(early[name], adapters[2][name]) for name in early)
    assert sorted(folder.name for folder in (job.output_dir / "snapshots").iterdir()) == ["step-2", "step-4"]
