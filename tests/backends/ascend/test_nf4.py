"""Linear layers that hold NF4 codes on MindSpore: the numbers, the swap, the bytes, and what must be noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

mindspore = pytest.importorskip("mindspore", reason="the ascend extra is not installed")

from tests.jobs import make_job
from tests.tiny_models import save_tiny_model
from twintune.backends.ascend import runtime
from twintune.backends.job import Lora, Quantization, TrainJob
from twintune.converters.adapter import read_adapter
from twintune.converters.base_checkpoint import base_checkpoint, network_tensors, quantized_shapes
from twintune.converters.names import base_names
from twintune.converters.nf4 import dequantize_nf4, quantize_nf4
from twintune.converters.weights import read_weights
from twintune.errors import UserError
from twintune.models import read_model_config

runtime.import_quietly()

from mindspore import nn, ops

from twintune.backends.ascend.base_weights import BaseWeights
from twintune.backends.ascend.nf4 import NF4Linear, NF4LoraLinear, NF4Product
from twintune.backends.ascend.parameters import parameters_by_name, put_in, put_on_adapter
from twintune.backends.ascend.probe import build_for_training

QUANTIZATION = Quantization(double_quant=False)
LORA = Lora(4, 8, 0.0, ("q_proj", "down_proj"))
BYTES = 0.6  # at most, of a quantized weight: half a byte of code, and absmax
WEIGHT = "model.layers.1.mlp.up_proj.weight"


class Loss(nn.Cell):  # type: ignore[misc]
    """The sum of squares of a product in NF4, and of the same product again with an input that is trained."""

    def __init__(self, codes: Any, absmax: Any, shape: tuple[int, int]) -> None:
        super().__init__()
        self.codes = mindspore.Parameter(mindspore.Tensor(codes), "codes", requires_grad=False)
        self.absmax = mindspore.Parameter(mindspore.Tensor(absmax), "absmax", requires_grad=False)
        self.scale = mindspore.Parameter(mindspore.Tensor(np.ones(shape[1], np.float32)), "scale")
        self.product = NF4Product(shape, 64, mindspore.float32)

    def construct(self, x: Any) -> Any:
        return ops.reduce_sum(ops.square(self.product(x * self.scale, self.codes, self.absmax)))


class Gradient(nn.Cell):  # type: ignore[misc]
    """Value and gradient in one graph, as training has them."""

    def __init__(self, network: Loss) -> None:
        super().__init__()
        self.network = network
        self.weights = mindspore.ParameterTuple([network.scale])
        self.grad = ops.GradOperation(get_by_list=True)

    def construct(self, x: Any) -> Any:
        return self.network(x), self.grad(self.network, self.weights)(x)


def test_value_and_gradient_of_a_product() -> None:
    draw = np.random.default_rng(0)
    shape = (48, 64)
    weight = draw.normal(0, 0.1, shape).astype(np.float32)
    x = draw.normal(size=(5, 64)).astype(np.float32)
    codes, absmax = quantize_nf4(weight)
    held = dequantize_nf4(codes, absmax, shape)
    mindspore.set_context(mode=mindspore.GRAPH_MODE, device_target="CPU")
    value, (gradient,) = Gradient(Loss(codes, absmax, shape))(mindspore.Tensor(x))
    y = x @ held.T
    assert float(value.asnumpy()) == pytest.approx(float(np.square(y).sum()), rel=1e-5)
    np.testing.assert_allclose(gradient.asnumpy(), (x * (2 * y @ held)).sum(axis=0), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("job"), "qwen2", lora=LORA, quantization=QUANTIZATION)


@pytest.fixture
def network(job: TrainJob) -> nn.Cell:
    """As a probe builds it, its weights not in yet."""
    return build_for_training(job)[0]


def fill(job: TrainJob, parameters: dict[str, Any]) -> None:
    put_in(parameters, network_tensors(job.model, read_model_config(job.model), job.dtype, QUANTIZATION))
    put_on_adapter(job, parameters)


def test_every_linear_layer_of_the_decoder_is_swapped(job: TrainJob, network: nn.Cell) -> None:
    cells = {name.rpartition("model.layers.")[2]: cell for name, cell in network.cells_and_names()}
    kinds = {name: type(cell) for name, cell in cells.items() if isinstance(cell, NF4Linear)}
    config = read_model_config(job.model)
    names = base_names(config)
    assert kinds.keys() == {
        names[name].removeprefix("model.layers.").removesuffix(".weight") for name in quantized_shapes(config)
    }
    around = {name for name, kind in kinds.items() if kind is NF4LoraLinear}
    assert around == {f"{layer}.{name}" for layer in (0, 1) for name in ("attention.wq", "feed_forward.w2")}


def test_the_parameters_are_those_of_the_checkpoint(
    job: TrainJob, network: nn.Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path))
    config = read_model_config(job.model)
    loaded = mindspore.load_checkpoint(str(base_checkpoint(job.model, config, "float32", QUANTIZATION)))
    parameters = parameters_by_name(network)
    missing, unused = mindspore.load_param_into_net(network, loaded)
    assert all("lora" in name for name in missing)
    assert not unused
    held = dict(network_tensors(job.model, config, "float32", QUANTIZATION))
    assert parameters.keys() - held.keys() == set(missing)
    for name, tensor in held.items():
        np.testing.assert_array_equal(parameters[name].asnumpy(), tensor, err_msg=name)
    assert base_checkpoint(job.model, config, "float32") != base_checkpoint(
        job.model, config, "float32", Quantization(double_quant=True)
    )


def test_memory(job: TrainJob, network: nn.Cell) -> None:
    config = read_model_config(job.model)
    names = base_names(config)
    parameters = parameters_by_name(network)
    for name, shape in quantized_shapes(config).items():
        held = [parameter for own, parameter in parameters.items() if own.startswith(names[name])]
        assert sum(parameter.asnumpy().nbytes for parameter in held) <= BYTES * np.prod(shape)


def test_weights_are_read_and_put_in_as_numbers(job: TrainJob, network: nn.Cell) -> None:
    config = read_model_config(job.model)
    parameters = parameters_by_name(network)
    fill(job, parameters)
    base = BaseWeights(parameters, config, job)
    weights = dict(base.read())
    assert list(weights) == list(base_names(config))
    for name, stored in read_weights(job.model, config):
        expected = dequantize_nf4(*quantize_nf4(stored), stored.shape) if name in quantized_shapes(config) else stored
        np.testing.assert_array_equal(weights[name], expected, err_msg=name)
    base.put([(WEIGHT, 2 * weights[WEIGHT])])
    np.testing.assert_array_equal(dict(base.read())[WEIGHT], 2 * weights[WEIGHT])
    base.put(weights.items())
    for name, tensor in base.read():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)
    with pytest.raises(UserError, match=r"up_proj.weight must be \[64, 112\], got a parameter of \[112, 64\]"):
        base.put([(WEIGHT, weights[WEIGHT].T)])


@pytest.mark.parametrize("ending", ["weight", "weight.absmax"])
def test_damaged_codes_are_noticed(job: TrainJob, network: nn.Cell, ending: str) -> None:
    parameters = parameters_by_name(network)
    fill(job, parameters)
    damaged = parameters[f"model.layers.1.feed_forward.w1.{ending}"]
    values = damaged.asnumpy().copy()
    values[7] += 1
    damaged.set_data(mindspore.Tensor(values))
    with pytest.raises(UserError, match=rf"feed_forward.w1.{ending} must equal that of .*model, got other values"):
        put_on_adapter(job, parameters)


def test_only_the_adapter_is_trained(job: TrainJob, network: nn.Cell) -> None:
    trained = {parameter.name for parameter in network.trainable_params()}
    _, tensors = read_adapter(job.initial_adapter)
    assert len(trained) == len(tensors)
    assert all("mindpet_delta_lora" in name for name in trained)


def test_a_layer_of_parts_of_blocks_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama", hidden_size=24, intermediate_size=36, num_attention_heads=2)
    with pytest.raises(UserError) as caught:
        dict(network_tensors(folder, read_model_config(folder), "float32", QUANTIZATION))
    assert len(caught.value.messages) == 6, "gate, up, down of each layer"
    assert "gate_proj.weight must have a multiple of 64 numbers to be quantized" in caught.value.messages[0]
