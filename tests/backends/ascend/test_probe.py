"""The probe of the ascend backend: MindFormers' own network and training's own gradients, compiled once each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mindspore = pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import Recorder, make_job, write_rows
from tests.probe_checks import check_wrong_matrices_are_named
from tests.tiny_models import save_tiny_model
from twintune.backends import Probe, load_backend
from twintune.backends.ascend import runtime
from twintune.backends.job import Lora, TrainJob
from twintune.converters.adapter import read_adapter, write_adapter
from twintune.converters.names import base_names
from twintune.converters.weights import read_weights
from twintune.errors import UserError
from twintune.models import read_model_config

runtime.import_quietly()

pytestmark = pytest.mark.slow

ROWS = [list(range(3, 3 + length)) for length in (5, 16, 11)]
LORA = Lora(4, 8, 0.0, ("q_proj", "down_proj"))


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


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return with_b(make_job(tmp_path_factory.mktemp("job"), accumulation=3, steps=4, lora=LORA, snapshot_steps=(2, 4)))


@pytest.fixture(scope="module")
def probe(job: TrainJob) -> Probe:
    return load_backend("ascend").open_probe(job)


@pytest.fixture(scope="module")
def done(job: TrainJob) -> Recorder:
    """The job, trained."""
    job.output_dir.mkdir()
    recorder = Recorder()
    load_backend("ascend").train(job, recorder)
    return recorder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that are compiled from here on."""
    from mindspore.common import api

    names: list[str] = []
    compile_cell = api._CellGraphExecutor.compile

    def counting(executor: Any, cell: Any, *inputs: Any, **named: Any) -> Any:
        phase, is_new = compile_cell(executor, cell, *inputs, **named)
        if is_new:
            names.append(cell.cls_name)
        return phase, is_new

    monkeypatch.setattr(api._CellGraphExecutor, "compile", counting)
    return names


def test_logits_equal_those_of_the_loaded_model(job: TrainJob, probe: Probe) -> None:
    model = load_backend("ascend").load_model(
        job.model, job.initial_adapter, pad_token_id=0, device="cpu", dtype="float32"
    )
    for ours, expected in zip(probe.forward(ROWS), model.logits(ROWS), strict=True):
        np.testing.assert_array_equal(ours.logits, expected)


def test_every_stage_is_kept(job: TrainJob, probe: Probe) -> None:
    """The first stage is the embedding of the ids; the last one times the head gives the logits."""
    weights = dict(read_weights(job.model, read_model_config(job.model)))
    for ours, row in zip(probe.forward(ROWS), ROWS, strict=True):
        assert list(ours.hidden) == ["embed_tokens", "layers.0", "layers.1", "norm"]
        assert {states.shape for states in ours.hidden.values()} == {(len(row), 64)}
        np.testing.assert_array_equal(ours.hidden["embed_tokens"], weights["model.embed_tokens.weight"][row])
        head = ours.hidden["norm"] @ weights["lm_head.weight"].T
        np.testing.assert_allclose(ours.logits, head, rtol=0, atol=1e-4)
        layer = ours.hidden["layers.1"]
        norm = layer / np.sqrt(np.square(layer).mean(-1, keepdims=True) + 1e-6) * weights["model.norm.weight"]
        np.testing.assert_allclose(ours.hidden["norm"], norm, rtol=0, atol=1e-4)


def test_nothing_is_compiled_again(job: TrainJob, probe: Probe, compiled: list[str]) -> None:
    probe.forward(ROWS[:1])
    probe.gradients(job.order[0])
    mindspore.nn.ReLU()(mindspore.Tensor([1.0]))
    assert compiled.pop() == "ReLU"
    compiled.clear()
    own = probe.adapter()
    probe.put_base(probe.base())
    probe.put_adapter({name: tensor * 2 for name, tensor in own.items()})
    probe.forward(ROWS)
    probe.gradients(job.order[1])
    probe.put_adapter(own)
    assert compiled == []


def test_gradients_are_those_of_the_first_step(job: TrainJob, probe: Probe, done: Recorder) -> None:
    measured = probe.gradients(job.order[0])
    step = done.steps[0]
    norm = np.sqrt(sum(float(np.square(gradient).sum()) for gradient in measured.gradients.values()))
    assert measured.tokens == measured.row_tokens.sum() == step.tokens
    assert measured.loss == pytest.approx(step.loss, rel=1e-6)
    assert norm == pytest.approx(step.grad_norm, rel=1e-6)
    assert measured.row_losses.shape == measured.row_tokens.shape == job.order[0].shape
    assert measured.row_losses.sum() / measured.tokens == pytest.approx(measured.loss, rel=1e-6)


def test_snapshots_are_the_adapter_after_their_steps(job: TrainJob, done: Recorder) -> None:
    assert len(done.steps) == 4
    _, final = read_adapter(job.output_dir / "adapter")
    _, last = read_adapter(job.snapshot(4))
    _, early = read_adapter(job.snapshot(2))
    assert early.keys() == last.keys() == final.keys()
    for name, tensor in final.items():
        np.testing.assert_array_equal(last[name], tensor)
    assert any(not np.array_equal(early[name], final[name]) for name in early)
    assert sorted(folder.name for folder in (job.output_dir / "snapshots").iterdir()) == ["step-2", "step-4"]


def test_a_probe_writes_nothing_into_the_run(job: TrainJob, done: Recorder) -> None:
    """MindFormers' LoRA network writes an adapter_config.json where the last training left its output folder."""
    load_backend("ascend").open_probe(job)
    assert done.steps
    assert [file for file in job.output_dir.rglob("adapter_config.json") if file.parent.name == "mindformers"] == []


def test_weights_are_put_in_and_back(probe: Probe) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    (before,) = probe.forward(ROWS[:1])
    own = dict(probe.base())[name]
    probe.put_base([(name, own + np.float32(0.1))])
    (changed,) = probe.forward(ROWS[:1])
    np.testing.assert_array_equal(dict(probe.base())[name], own + np.float32(0.1))
    probe.put_base([(name, own)])
    assert np.abs(changed.logits - before.logits).max() > 0.01
    np.testing.assert_array_equal(changed.hidden["layers.0"], before.hidden["layers.0"])
    np.testing.assert_array_equal(probe.forward(ROWS[:1])[0].logits, before.logits)


def test_an_adapter_is_put_in(probe: Probe) -> None:
    own = probe.adapter()
    (before,) = probe.forward(ROWS[:1])
    probe.put_adapter({name: tensor + np.float32(0.01) for name, tensor in own.items()})
    (changed,) = probe.forward(ROWS[:1])
    for name, tensor in probe.adapter().items():
        np.testing.assert_array_equal(tensor, own[name] + np.float32(0.01))
    probe.put_adapter(own)
    assert np.abs(changed.logits - before.logits).max() > 1e-3


def test_wrong_weights_are_named(probe: Probe) -> None:
    """MindFormers' own names are none of the seam's."""
    strangers = {"model.layers.0.attention.wq.weight": (64, 64), "model.norm.weight": (65,)}
    with pytest.raises(UserError) as caught:
        probe.put_base((name, np.zeros(shape, np.float32)) for name, shape in strangers.items())
    unknown, shape = caught.value.messages
    assert "model.layers.0.attention.wq.weight must be there" in unknown
    assert "model.norm.weight must be [65], got a parameter of [64]" in shape


def test_wrong_matrices_are_named(probe: Probe) -> None:
    check_wrong_matrices_are_named(probe)


def test_a_row_longer_than_the_graph_is_refused(probe: Probe) -> None:
    with pytest.raises(UserError, match="row 1: it must have at most the 32 tokens of the compiled network, got 33"):
        probe.forward([ROWS[0], [3] * 33])


def test_a_probe_names_its_parameters_as_training_does(job: TrainJob) -> None:
    """A cell set as an attribute of another renames its parameters; the stages are set without."""
    from mindformers.wrapper.wrapper import get_real_models

    from twintune.backends.ascend.parameters import parameters_by_name
    from twintune.backends.ascend.probe import build_for_training
    from twintune.backends.ascend.stages import keep_stages

    network, _ = build_for_training(job)
    before = {id(parameter): name for name, parameter in parameters_by_name(network).items()}
    stages = keep_stages(get_real_models(network).model, (1, 32, 64))
    kept = {id(cell.kept) for cell in stages.values()}
    after = {
        id(parameter): name for name, parameter in parameters_by_name(network).items() if id(parameter) not in kept
    }
    assert after == before
    assert not any(cell.kept.requires_grad for cell in stages.values())


def test_rows_without_a_trained_token_are_refused(tmp_path: Path, job: TrainJob) -> None:
    rows = write_rows(tmp_path / "masked", [([5, 6, 7], [5, -100, -100])] * 24)
    with pytest.raises(UserError, match=r"rows \[3, 4\] must have a trained token"):
        load_backend("ascend").open_probe(replace(job, rows=rows)).gradients(np.array([[3, 4]]))


def test_float16_is_measured_as_it_computes(job: TrainJob, probe: Probe) -> None:
    half = load_backend("ascend").open_probe(replace(job, dtype="float16", order=job.order[:, :1]))
    weights = dict(read_weights(job.model, read_model_config(job.model)))
    for name, tensor in half.base():
        np.testing.assert_array_equal(tensor, weights[name].astype(np.float16).astype(np.float32), err_msg=name)
    for one, other in zip(probe.forward(ROWS), half.forward(ROWS), strict=True):
        assert other.logits.dtype == other.hidden["layers.0"].dtype == np.float32
        error = np.abs(one.logits - other.logits).max() / np.abs(one.logits).max()
        assert 1e-5 < error < 0.02, error  # float16 has 11 significant bits
    exact, rounded = probe.gradients(job.order[0]), half.gradients(job.order[0][:1])
    np.testing.assert_allclose(rounded.row_losses, exact.row_losses[:1], rtol=0.01)
    for name, gradient in rounded.gradients.items():
        assert gradient.dtype == np.float32
        assert np.isfinite(gradient).all(), name
        assert gradient.any(), name


def test_tied_embeddings_appear_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, model=save_tiny_model(tmp_path / "model", "qwen2"), lora=LORA)
    probe = load_backend("ascend").open_probe(job)
    weights = dict(read_weights(job.model, read_model_config(job.model)))
    base = dict(probe.base())
    assert list(base) == list(base_names(read_model_config(job.model)))
    assert "lm_head.weight" not in base
    for name, tensor in base.items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)
