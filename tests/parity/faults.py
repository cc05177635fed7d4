"""Faults that a port really has, planted one at a time in the cuda backend by pytest's monkeypatch.

Each function plants one and says nothing of where parity finds it; tests/parity/test_faults.py does.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twintune import chat, generation
from twintune.backends import TrainJob
from twintune.converters import arrow
from twintune.converters.rows import IGNORED, Row
from twintune.prepared import ARROW, Prepared
from twintune.recipe import Recipe

Patch = pytest.MonkeyPatch
record: Any = import_module("twintune.parity.record")
training: Any = import_module("twintune.training")


def cuda(name: str) -> Any:
    """A module of the cuda backend; torch is imported here and not before."""
    return import_module(f"twintune.backends.cuda.{name}")


def in_network(change: Callable[[Any], None]) -> Callable[[Patch], None]:
    """Plant a fault in every transformers model that is loaded."""

    def plant(patch: Patch) -> None:
        model = cuda("model")

        load = model._from_pretrained

        def loaded(folder: Path, dtype: str) -> tuple[Any, dict[str, Any]]:
            network, report = load(folder, dtype)
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


def dropout(module: Any) -> None:
    import torch

    module.lora_dropout["default"] = torch.nn.Dropout(0.1)


def swapped_a_and_b(patch: Patch) -> None:
    """B transposed in the place of A and the other way round, where the shapes allow it."""
    train = cuda("train")

    read = train.read_adapter

    def swapped(folder: Path) -> tuple[Any, dict[str, NDArray[np.float32]]]:
        lora, tensors = read(folder)
        for name in [name for name in tensors if ".lora_A." in name]:
            a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
            if a.shape == b.T.shape:
                tensors[name], tensors[name.replace("lora_A", "lora_B")] = b.T.copy(), a.T.copy()
        return lora, tensors

    patch.setattr(train, "read_adapter", swapped)


def another_initial_adapter(patch: Patch) -> None:
    for module in (training, record):
        make = module.make_initial_adapter
        patch.setattr(
            module, "make_initial_adapter", lambda config, lora, seed, make=make: make(config, lora, seed + 1)
        )


def in_loss_rows(change: Callable[[Any, Any], Any]) -> Callable[[Patch], None]:
    """Plant a fault in the labels as the loss gets them, after the rows were read."""

    def plant(patch: Patch) -> None:
        train = cuda("train")

        pad = train.pad_right

        def changed(*arguments: Any) -> tuple[Any, Any]:
            ids, labels = pad(*arguments)
            return ids, change(ids, labels)

        patch.setattr(train, "pad_right", changed)

    return plant


def shifted_once_more(_ids: Any, labels: Any) -> Any:
    return labels.roll(1, dims=1)


def optimizer(build: Callable[[TrainJob, list[Any]], Any]) -> Callable[[Patch], None]:
    """Replace the optimizer."""

    def plant(patch: Patch) -> None:
        train = cuda("train")

        patch.setattr(train, "_adamw", build)

    return plant


def no_bias_correction(job: TrainJob, parameters: list[Any]) -> Any:
    import torch

    settings = job.optimizer

    class Uncorrected(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not read by mypy here
        """mindspore.nn.AdamWeightDecay's rule."""

        def __init__(self) -> None:
            super().__init__(parameters, {"lr": settings.learning_rate})

        @torch.no_grad()  # type: ignore[untyped-decorator]  # as above
        def step(self, closure: Any = None) -> None:
            for parameter in parameters:
                m, v = self.state[parameter].get("moments", (0, 0))
                m = settings.adam_beta1 * m + (1 - settings.adam_beta1) * parameter.grad
                v = settings.adam_beta2 * v + (1 - settings.adam_beta2) * parameter.grad**2
                self.state[parameter]["moments"] = m, v
                update = m / (v**0.5 + settings.adam_epsilon) + settings.weight_decay * parameter
                parameter.sub_(self.param_groups[0]["lr"] * update)

    return Uncorrected()


def no_weight_decay(job: TrainJob, parameters: list[Any]) -> Any:
    import torch

    settings = job.optimizer
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=betas, eps=1e-8, weight_decay=0.0)


def another_beta2(job: TrainJob, parameters: list[Any]) -> Any:
    import torch

    decay = job.optimizer.weight_decay
    return torch.optim.AdamW(parameters, lr=job.optimizer.learning_rate, betas=(0.9, 0.99), weight_decay=decay)


def moments_forgotten(job: TrainJob, parameters: list[Any]) -> Any:
    """Adam that begins anew at each step."""
    import torch

    settings = job.optimizer

    class Forgetful(torch.optim.AdamW):  # type: ignore[misc]  # torch is not read by mypy here
        def step(self, closure: Any = None) -> None:
            super().step()
            if getattr(self, "steps", 0) >= 3:  # the one step that is looked at closely stays right
                self.state.clear()
            self.steps = getattr(self, "steps", 0) + 1

    return Forgetful(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def warmup_rounded_down(patch: Patch) -> None:
    train = cuda("train")

    rates = train.learning_rates

    def rounded_down(schedule: Any, learning_rate: float) -> NDArray[np.float64]:
        rounded: NDArray[np.float64] = rates(replace(schedule, warmup_steps=schedule.warmup_steps - 1), learning_rate)
        return rounded

    patch.setattr(train, "learning_rates", rounded_down)


def clipped_by_value(patch: Patch) -> None:
    import torch

    def clip(parameters: list[Any], limit: float) -> Any:
        norm = torch.linalg.vector_norm(torch.stack([parameter.grad.norm() for parameter in parameters]))
        torch.nn.utils.clip_grad_value_(parameters, limit / 100)
        return norm

    patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


def weighted_means(weight: Callable[[list[Row], int, int], float]) -> Callable[[Patch], None]:
    """Plant another normaliser: each micro-batch's mean loss gets a weight of its own in the backward pass."""

    def plant(patch: Patch) -> None:
        probe, train = cuda("probe"), cuda("train")

        backward = train.backward

        def changed(job: TrainJob, model: Any, batches: list[list[Row]], tokens: int) -> Any:
            import torch

            parts = split(batches)
            losses = [
                backward(job, model, [part], round(weight(part, len(parts), tokens))).reshape(-1) for part in parts
            ]
            return torch.cat(losses).reshape(len(batches), -1)

        def split(batches: list[list[Row]]) -> list[list[Row]]:
            return [[row] for batch in batches for row in batch] if weight is mean_of_ranks else batches

        for module in (train, probe):
            patch.setattr(module, "backward", changed)

    return plant


def mean_of_micro_batches(part: list[Row], parts: int, tokens: int) -> float:
    return parts * sum(row.trained_tokens for row in part)


def mean_of_ranks(part: list[Row], parts: int, tokens: int) -> float:
    """Each row as if a rank of its own had it."""
    return parts * part[0].trained_tokens


def top_p_drops_the_token_that_crosses(patch: Patch) -> None:
    def without_edge(logits: NDArray[np.float32], sampling: Any) -> NDArray[np.float64]:
        scores = logits.astype(np.float64) / sampling.temperature
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        falling = np.argsort(-shares, kind="stable")
        beyond = falling[np.cumsum(shares[falling]) > sampling.top_p]
        shares[beyond[beyond != falling[0]]] = 0
        kept: NDArray[np.float64] = shares / shares.sum()
        return kept

    patch.setattr(generation, "probabilities", without_edge)


def another_eos(token: int) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        load = chat.load_chat
        from twintune.parity import texts

        def changed(*arguments: Any, **keywords: Any) -> Any:
            loaded = load(*arguments, **keywords)
            loaded.generator.eos_token_ids = frozenset({*loaded.generator.eos_token_ids, token})
            return loaded

        patch.setattr(texts, "load_chat", changed)

    return plant


def attended_left_padding(patch: Patch) -> None:
    from twintune.backends.cuda.decode import CudaLanguageModel

    batch = CudaLanguageModel._batch

    def changed(self: Any, rows: Any, *, left: bool) -> tuple[Any, Any]:
        import torch

        ids, mask = batch(self, rows, left=left)
        return ids, torch.ones_like(mask) if left else mask

    patch.setattr(CudaLanguageModel, "_batch", changed)


def adapter_saved_in_half(patch: Patch) -> None:
    """The final adapter goes through bfloat16 on its way to the file."""
    train = cuda("train")

    write = train.write_adapter

    def rounded(folder: Path, tensors: Any, *rest: Any) -> None:
        import ml_dtypes

        half = {name: tensor.astype(ml_dtypes.bfloat16).astype(np.float32) for name, tensor in tensors.items()}
        write(folder, half if folder.name == "adapter" else tensors, *rest)

    patch.setattr(train, "write_adapter", rounded)


def merged_with_scaling_one(patch: Patch) -> None:
    merge = record.merged_weights

    def with_scaling_one(base: Any, lora: Any, tensors: Any, dtype: str) -> Any:
        return merge(base, replace(lora, lora_alpha=lora.r), tensors, dtype)

    patch.setattr(record, "merged_weights", with_scaling_one)


def in_rows(change: Callable[[list[Row]], list[Row]]) -> Callable[[Patch], None]:
    """Plant a fault in the rows that the backend reads; its manifest knows nothing of it."""

    def plant(patch: Patch) -> None:
        find = training.find_or_prepare

        def changed(recipe: Recipe) -> Prepared:
            prepared: Prepared = find(recipe)
            rows = list(arrow.read_rows(prepared.folder / ARROW))
            folder = prepared.folder.parent / f"changed-{change.__name__}"
            folder.mkdir(exist_ok=True)
            arrow.write_rows(change(rows), folder / ARROW)
            return replace(prepared, folder=folder)

        patch.setattr(training, "find_or_prepare", changed)

    return plant


def label_off_by_one(rows: list[Row]) -> list[Row]:
    """The first trained token is masked and one token of the next turn's opening is trained instead."""
    return [Row(row.input_ids, np.where(np.roll(row.labels != IGNORED, -1), row.input_ids, IGNORED)) for row in rows]


def prompt_trained(rows: list[Row]) -> list[Row]:
    return [Row(row.input_ids, row.input_ids.copy()) for row in rows]


def eos_not_trained(rows: list[Row]) -> list[Row]:
    changed = []
    for row in rows:
        labels = row.labels.copy()
        labels[np.flatnonzero(labels != IGNORED)[-1]] = IGNORED
        changed.append(Row(row.input_ids, labels))
    return changed


def another_order(rows: list[Row]) -> list[Row]:
    return [*rows[:2], *rows[2:][::-1]]


def one_flipped_byte(rows: list[Row]) -> list[Row]:
    ids = rows[4].input_ids.copy()
    ids[7] ^= 1
    return [*rows[:4], Row(ids, np.where(rows[4].labels == IGNORED, IGNORED, ids)), *rows[5:]]


def another_system_prompt(recipe: Recipe) -> Callable[[Patch], None]:
    """The rows that a FastChat of another version would have made: its template has another system prompt."""

    def plant(patch: Patch) -> None:
        find = training.find_or_prepare
        data = recipe.data.model_copy(update={"system": "You are another assistant."})
        other = find(recipe.model_copy(update={"data": data}))

        def changed(asked: Recipe) -> Prepared:
            prepared: Prepared = find(asked)
            return replace(prepared, folder=other.folder)

        patch.setattr(training, "find_or_prepare", changed)

    return plant


def training_fails(patch: Patch) -> None:
    train = cuda("train")
    from twintune.errors import UserError

    def fail(job: TrainJob, model: Any) -> Any:
        raise UserError("step 1: loss must be finite, got nan")

    patch.setattr(train, "optimizer_steps", fail)
