"""Faults of the network: rope, biases, norms, the head, the mask, and of the adapter on it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.parity.fault_places import Patch, cuda


def in_network(change: Callable[[Any], None]) -> Callable[[Patch], None]:
    """Plant a fault in every transformers model that is loaded."""

    def plant(patch: Patch) -> None:
        model = cuda("model")

        load = model._from_pretrained

        def loaded(*arguments: Any) -> tuple[Any, dict[str, Any]]:
            network, report = load(*arguments)
            import torch

            with torch.no_grad():
                change(network)
            return network, report

        patch.setattr(model, "_from_pretrained", loaded)

    return plant


def rope_theta(network: Any) -> None:
    rotary = network.model.rotary_emb
    size = rotary.inv_freq.numel()
    rotary.inv_freq.copy_(rotary.inv_freq ** ((size + 1) / size))


def rope_scaling(network: Any) -> None:
    network.model.rotary_emb.inv_freq.div_(2)


def no_bias(network: Any) -> None:
    for layer in network.model.layers:
        layer.self_attn.k_proj.bias.zero_()


def norm_epsilon(network: Any) -> None:
    for layer in network.model.layers:
        layer.input_layernorm.variance_epsilon = 1e-3


def swapped_w1_and_w3(network: Any) -> None:
    for layer in network.model.layers:
        gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        kept = gate.clone()
        gate.copy_(up)
        up.copy_(kept)


def untied_head(network: Any) -> None:
    import torch

    head = network.lm_head.weight
    network.lm_head.weight = torch.nn.Parameter(head.clone().roll(1, dims=0), requires_grad=False)


def one_weight(network: Any) -> None:
    network.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3


def hidden_token(network: Any) -> None:
    """One id, as if it were the pad, is hidden in the middle of the text."""

    def hide(_module: Any, _inputs: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = keywords["input_ids"]
        hidden = ids[:, 6:7]
        seen = (ids != hidden).long()
        seen[:, :6] = 1
        return _inputs, keywords | {"attention_mask": seen}

    network.model.register_forward_pre_hook(hide, with_kwargs=True)


def in_adapter(change: Callable[[Any], None]) -> Callable[[Patch], None]:
    """Plant a fault in every PEFT model."""

    def plant(patch: Patch) -> None:
        import peft

        get = peft.get_peft_model

        def changed(*arguments: Any, **keywords: Any) -> Any:
            model = get(*arguments, **keywords)
            for module in model.modules():
                if hasattr(module, "lora_A"):
                    change(module)
            return model

        patch.setattr(peft, "get_peft_model", changed)

    return plant


def scaling_of_one(module: Any) -> None:
    module.scaling["default"] = 1.0


def dropout_of_torch(patch: Patch) -> None:
    """PEFT's own dropout stays, which draws from torch's generator."""
    patch.setattr(cuda("model"), "put_on_dropout", lambda _model, _lora: None)


def swapped_a_and_b(patch: Patch) -> None:
    """B transposed in the place of A and the other way round, where the shapes allow it."""
    train = cuda("train")

    read = train.read_any_adapter

    def swapped(folder: Path, **options: Any) -> tuple[Any, dict[str, NDArray[np.float32]]]:
        lora, tensors = read(folder, **options)
        for name in [name for name in tensors if ".lora_A." in name]:
            a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
            if a.shape == b.T.shape:
                tensors[name], tensors[name.replace("lora_A", "lora_B")] = b.T.copy(), a.T.copy()
        return lora, tensors

    patch.setattr(train, "read_any_adapter", swapped)


def another_initial_adapter(patch: Patch) -> None:
    adapter = import_module("twintune.converters.adapter")
    make = adapter.make_initial_adapter
    patch.setattr(adapter, "make_initial_adapter", lambda config, lora, seed: make(config, lora, seed + 1))
