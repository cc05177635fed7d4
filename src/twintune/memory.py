"""What a training step takes of a device's memory, by part: a model on paper, tested against PyTorch's allocator.

Activations are what PyTorch keeps for the gradient of a frozen network with trained adapters: a frozen linear layer
keeps no input (Korthikanti et al. 2022, arXiv:2205.05198, count one with trained weights). Attention keeps no matrix
of [length, length], as with FlashAttention (Dao et al. 2022, arXiv:2205.14135).
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from twintune.adapter_plan import count_parameters
from twintune.backends.job import Lora, Optimizer, PrefixTuning, Quantization
from twintune.converters.names import LINEAR_MODULES, base_shapes, head_dim, linear_shapes
from twintune.optimizers import moment_names

FLOAT32 = 4
LOSS_CHUNK = 512  # positions whose logits PyTorch's loss has at a time (twintune.backends.cuda.chunked_loss)
MOST_ROWS = 4096  # of a micro-batch that is looked for


@dataclass(frozen=True)
class Training:
    """What decides the memory of a run besides its rows.

    Attributes:
        config: the model's checked config.json.
        adapter, optimizer, dtype, quantization, gradient_checkpointing: as in TrainJob.
        devices: that share the work, with the same micro-batch on each.
        loss_chunk: positions whose logits are there at a time; None: all of the micro-batch's.
        sharded: whether weights, adapter, gradients and moments lie in equal shares on them (ZeRO stage 3, FSDP);
            else each device has all (DDP).
    """

    config: Mapping[str, Any]
    adapter: Lora | PrefixTuning
    optimizer: Optimizer
    dtype: str
    quantization: Quantization | None = None
    gradient_checkpointing: bool = False
    loss_chunk: int | None = LOSS_CHUNK
    devices: int = 1
    sharded: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """The rows that go through the network together.

    Attributes:
        rows: how many.
        length: tokens of each, padding included.
        logits: positions of all rows whose logits are computed.
    """

    rows: int
    length: int
    logits: int


@dataclass(frozen=True)
class Memory:
    """Bytes that one device holds at the peak of a training step.

    Attributes:
        weights: of the base, and what sharding gathers of them for the layer at hand.
        adapter: what is trained, with the copies that autocast makes of it.
        gradients: of the adapter.
        moments: of the optimizer.
        activations: kept for the gradient.
        workspace: the larger of what the loss and what one layer's gradient needs for a while.
    """

    weights: float
    adapter: float
    gradients: float
    moments: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """All parts together; the framework's own buffers come on top."""
        return self.weights + self.adapter + self.gradients + self.moments + self.activations + self.workspace


def estimate_memory(training: Training, batch: MicroBatch) -> Memory:
    """The memory of a device at the peak: when a micro-batch's gradient begins."""
    numbers = count_parameters(training.adapter, training.config)
    share = training.devices if training.sharded else 1
    copies = 0 if training.dtype == "float32" else _size(training)
    buckets = FLOAT32 * numbers if training.devices > 1 else 0  # gradients on their way between devices
    return Memory(
        weights=weight_bytes(training) / share + _gathered(training),
        adapter=FLOAT32 * numbers / share + copies * numbers,
        gradients=FLOAT32 * numbers / share + buckets,
        moments=moment_bytes(training.optimizer) * numbers / share,
        activations=_activations(training, batch),
        workspace=max(_loss_bytes(training, batch), _layer_workspace(training, batch)),
    )


def largest_micro_batch(training: Training, length: int, logits: int, room: float) -> int:
    """The most rows of a micro-batch that fit; 0 if one does not.

    Args:
        training: of what.
        length: tokens of each row.
        logits: positions of each row whose logits are computed.
        room: bytes.
    """

    def needed(rows: int) -> float:
        return estimate_memory(training, MicroBatch(rows, length, rows * logits)).total

    return bisect_right(range(1, MOST_ROWS + 1), room, key=needed)


def weight_bytes(training: Training) -> float:
    """Bytes of the base's weights, all of them."""
    numbers = sum(map(prod, base_shapes(training.config).values()))
    linear = sum(map(prod, linear_shapes(training.config, LINEAR_MODULES).values()))
    return _size(training) * (numbers - linear) + _linear_size(training) * linear


def moment_bytes(optimizer: Optimizer) -> float:
    """Bytes of an optimizer's moments for each trained number.

    8-bit codes have a float32 scale for each block of 256 (Dettmers et al. 2022, arXiv:2110.02861).
    """
    size = 1 + FLOAT32 / 256 if optimizer.optim.endswith("_8bit") else FLOAT32
    return size * len(moment_names(optimizer))


def _size(training: Training) -> int:
    """Bytes of a number in the dtype of the forward."""
    return FLOAT32 if training.dtype == "float32" else 2


def _linear_size(training: Training) -> float:
    """Bytes of a weight in the decoder's linear layers.

    NF4 is half a byte, and a scale for each block of 64: float32, or 8 bits with a float32 for each 256 of them
    (Dettmers et al. 2023, arXiv:2305.14314).
    """
    if training.quantization is None:
        return _size(training)
    scale = 1 + FLOAT32 / 256 if training.quantization.double_quant else FLOAT32
    return 0.5 + scale / 64


def _gathered(training: Training) -> float:
    """Whole weights beside a device's share: embeddings and head, the layer at hand and the next, fetched meanwhile."""
    if not training.sharded:
        return 0.0
    layers = training.config["num_hidden_layers"]
    linear = sum(map(prod, linear_shapes(training.config, LINEAR_MODULES).values()))
    outside = sum(map(prod, base_shapes(training.config).values())) - linear
    return float(_size(training) * outside + 2 * _linear_size(training) * linear / layers)


def _activations(training: Training, batch: MicroBatch) -> float:
    tokens, layers = batch.rows * batch.length, training.config["num_hidden_layers"]
    hidden = training.config["hidden_size"]
    if training.gradient_checkpointing:  # a layer keeps its input; the last norm keeps its own in float32
        return float(tokens * hidden * (layers * _size(training) + FLOAT32))
    return float(layers * _kept_by_layer(training, batch))


def _kept_by_layer(training: Training, batch: MicroBatch) -> float:
    """Bytes that a decoder layer keeps: what enters its norms, attention and activation, and LoRA."""
    config, size = training.config, _size(training)
    heads = config["num_attention_heads"]
    groups = config["num_key_value_heads"] or heads
    inner = config["intermediate_size"]
    phi = config["model_type"] == "phi"
    norms = FLOAT32 * config["hidden_size"] * (1 if phi else 2)
    attention = size * 2 * (heads + groups) * head_dim(config) + FLOAT32 * heads
    mlp = size * inner * (4 if phi else 3)  # gelu_new in steps; or gate, its activation and up
    kept = norms + attention + mlp + _kept_by_lora(training)
    return float(batch.rows * (batch.length * kept + _prefix_bytes(training)))


def _prefix_bytes(training: Training) -> float:
    """Keys and values of a prefix in one row and layer."""
    if isinstance(training.adapter, Lora):
        return 0.0
    return float(2 * _size(training) * training.adapter.num_virtual_tokens * training.adapter.token_dim)


def _kept_by_lora(training: Training) -> float:
    """Bytes that the LoRA matrices of a layer keep for a token.

    In float32 layers of one input share it, and o_proj's is the attention's own output; autocast gives each a copy, and
    so does dropout, with a byte for each number that tells whether it was dropped.
    """
    if not isinstance(training.adapter, Lora):
        return 0.0
    size, lora = _size(training), training.adapter
    layer = linear_shapes(training.config, lora.target_modules)
    widths = {name.rpartition(".")[2]: shape[1] for name, shape in layer.items()}
    kept = size * lora.r * len(widths)
    if lora.lora_dropout:
        return float(kept + (size + 1) * sum(widths.values()))
    if training.dtype != "float32":
        return float(kept + size * sum(widths.values()))
    inputs = {INPUTS[module]: width for module, width in widths.items() if module in INPUTS}
    return float(kept + size * sum(inputs.values()))


# Which linear layers take the same input; o_proj's is kept by the attention in any case.
INPUTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc1"), "first norm"),
    **dict.fromkeys(("gate_proj", "up_proj"), "second norm"),
    **dict.fromkeys(("down_proj", "fc2"), "activation"),
    "dense": "attention",
}


def _loss_bytes(training: Training, batch: MicroBatch) -> float:
    """Logits and float32 log-probabilities of a chunk: a frozen head has its gradient taken of them at once.

    Without chunks, or where the head is trained: log-probabilities with two gradients of their size.
    """
    config = training.config
    positions = batch.logits if training.loss_chunk is None else min(batch.logits, training.loss_chunk)
    trained = isinstance(training.adapter, Lora) and "lm_head" in training.adapter.modules_to_save
    if trained or training.loss_chunk is None:
        return float(3 * FLOAT32 * positions * config["vocab_size"])
    kept = _size(training) * batch.logits * config["hidden_size"]
    return float(kept + (_size(training) + FLOAT32) * positions * config["vocab_size"])


def _layer_workspace(training: Training, batch: MicroBatch) -> float:
    """What a layer's gradient holds for a while, and its activations where they are computed again.

    Two gradients of the inner size and one of the hidden size, with a third one or a whole weight made of NF4.
    """
    config, size = training.config, _size(training)
    tokens, inner = batch.rows * batch.length, config["intermediate_size"]
    whole = max(map(prod, linear_shapes(config, LINEAR_MODULES).values())) if training.quantization else 0
    gradients = tokens * (2 * inner + config["hidden_size"]) + max(tokens * inner, whole)
    again = _kept_by_layer(training, batch) if training.gradient_checkpointing else 0
    return float(size * gradients + again)
