"""A base in NF4 on PyTorch: which layers, whose numbers, how many bytes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda extra is not installed")

from tests.jobs import make_job
from tests.tiny_models import save_tiny_model
from twintune.backends import Probe
from twintune.backends.cuda import CudaBackend, nf4
from twintune.backends.cuda.model import load_base
from twintune.backends.job import Quantization, TrainJob
from twintune.converters.base_checkpoint import quantized_shapes
from twintune.converters.nf4 import dequantize_absmax, dequantize_nf4, quantize_absmax, quantize_nf4
from twintune.converters.weights import read_weights
from twintune.errors import UserError
from twintune.models import read_model_config

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WEIGHT = "model.layers.1.mlp.up_proj.weight"
BYTES = 0.6  # at most, of a quantized weight: half a byte of code, and absmax


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("nf4") / "model", "llama", attention_bias=True)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_that_the_front_end_quantizes(folder: Path, dtype: str, double_quant: bool) -> None:
    model = load_base(folder, "cpu", dtype, Quantization(double_quant))
    parameters = dict(model.named_parameters())
    config = read_model_config(folder)
    rounded = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    for name, stored in read_weights(folder, config):
        expected = stored.astype(rounded).astype(np.float32)
        if name in quantized_shapes(config):
            codes, absmax = quantize_nf4(expected)
            if double_quant:
                absmax = dequantize_absmax(quantize_absmax(absmax))
            expected = dequantize_nf4(codes, absmax, stored.shape).astype(rounded).astype(np.float32)
        read = nf4.Weight(parameters[name]).read()
        assert read.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(read.detach().float().numpy(), expected, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi"])
def test_the_layers_are_those_that_transformers_chooses(tmp_path: Path, family: str) -> None:
    from bitsandbytes.nn import Linear4bit

    folder = save_tiny_model(tmp_path / "model", family)
    model = load_base(folder, "cpu", "float32", Quantization(double_quant=False))
    chosen = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert chosen == quantized_shapes(read_model_config(folder)).keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("double_quant", [False, True])
def test_memory(folder: Path, double_quant: bool) -> None:
    model = load_base(folder, "cpu", "float32", Quantization(double_quant))
    parameters = dict(model.named_parameters())
    for name, shape in quantized_shapes(read_model_config(folder)).items():
        state = parameters[name].quant_state
        tensors = [parameters[name].data, state.absmax, *([state.state2.absmax] if double_quant else [])]
        assert sum(tensor.nbytes for tensor in tensors) <= BYTES * np.prod(shape)


def test_nothing_stays_on_the_cpu_or_computes_in_bfloat16(folder: Path) -> None:
    """Accelerate's hooks would take inputs back to the CPU; bitsandbytes repacks for processors with AVX512-BF16."""
    model = load_base(folder, "cpu", "float32", Quantization(double_quant=False))
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    repacking = [module.support_avx512bf16_for_cpu for module in model.modules() if hasattr(module, "quant_state")]
    assert repacking
    assert not any(repacking)


def test_logits_are_those_of_the_dequantized_weights(folder: Path) -> None:
    quantized = load_base(folder, "cpu", "float32", Quantization(double_quant=True))
    plain = load_base(folder, "cpu", "float32")
    weights = {name: nf4.Weight(parameter).read() for name, parameter in quantized.named_parameters()}
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = plain(ids).logits
        for name, parameter in plain.named_parameters():
            parameter.copy_(weights[name])
        expected, given = plain(ids).logits, quantized(ids).logits
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    assert (before - expected).abs().max() > 0.1


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("job"), quantization=Quantization(double_quant=False))


@pytest.fixture(scope="module")
def probe(job: TrainJob) -> Probe:
    return CudaBackend().open_probe(job)


def test_gradients_are_those_of_the_dequantized_base(job: TrainJob, probe: Probe) -> None:
    plain = CudaBackend().open_probe(replace(job, quantization=None))
    plain.put_base(probe.base())
    one, other = (side.gradients(job.order[0]) for side in (probe, plain))
    assert one.loss == pytest.approx(other.loss, abs=1e-6)
    for name, gradient in one.gradients.items():
        np.testing.assert_allclose(gradient, other.gradients[name], rtol=0, atol=1e-6, err_msg=name)


def test_a_weight_is_put_in_as_codes_and_back(probe: Probe) -> None:
    own = dict(probe.base())[WEIGHT]
    before = probe.forward([[3, 4, 5]])[0].logits
    probe.put_base([(WEIGHT, np.float32(2) * own)])
    assert np.abs(probe.forward([[3, 4, 5]])[0].logits - before).max() > 0.01
    np.testing.assert_allclose(dict(probe.base())[WEIGHT], 2 * own, rtol=0.02)
    probe.put_base([(WEIGHT, own)])
    np.testing.assert_array_equal(dict(probe.base())[WEIGHT], own)
    with pytest.raises(UserError, match=r"up_proj.weight must be \[64, 112\], got a parameter of \[112, 64\]"):
        probe.put_base([(WEIGHT, own.T)])


def test_bitsandbytes_must_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(package: str) -> Any:
        return None if package == "bitsandbytes" else object()

    monkeypatch.setattr(nf4, "find_spec", without)
    with pytest.raises(UserError, match=r"load_in_4bit must have the package bitsandbytes.*pip install"):
        load_base(folder, "cpu", "float32", Quantization(double_quant=False))


def test_a_model_is_loaded_in_4_bits_for_text(job: TrainJob, probe: Probe) -> None:
    loaded = CudaBackend().load_model(
        job.model, job.initial_adapter, pad_token_id=0, device="cpu", dtype="float32", quantization=job.quantization
    )
    row = list(range(3, 12))
    np.testing.assert_allclose(loaded.logits([row])[0], probe.forward([row])[0].logits, rtol=0, atol=1e-5)
