"""Whether MindFormers knows every key of a configuration: most of its classes swallow unknown ones.

A swallowed key is a setting that silently has no effect (`softmax_compute_dtype` for
`softmax_compute_type`), so every section is held against the signature that reads it.
"""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mindformers.dataset import CausalLanguageModelDataset
from mindformers.pet.pet_config import LoraConfig
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.tools.register.template import CONFIG_NAME_TO_CLASS, GeneralConfig
from mindspore.context import _Context
from mindspore.dataset import MindDataset
from mindspore.parallel._auto_parallel_context import _set_auto_parallel_context_func_map

import twintune.backends.ascend.optimizers
import twintune.backends.ascend.phi
import twintune.backends.ascend.prefix
import twintune.backends.ascend.schedule
import twintune.backends.ascend.step  # noqa: F401  all register with MindFormers
from twintune.errors import raise_collected

# Read by getattr in BaseTrainer.training_process, though MindFormers' template does not list it.
READ_BUT_UNLISTED = {"calculate_per_token_loss"}
REGISTERED = {
    "optimizer": MindFormerModuleType.OPTIMIZER,
    "lr_schedule": MindFormerModuleType.LR,
    "runner_wrapper": MindFormerModuleType.WRAPPER,
    "trainer": MindFormerModuleType.TRAINER,
}
# What the recipe decides: laid over here, MindFormers would ignore it or train another job.
OWNED = {
    "use_parallel": "backend.ascend.model_parallel or pipeline_stage",
    "parallel_config.data_parallel": "backend.ascend.data_parallel",
    "parallel_config.model_parallel": "backend.ascend.model_parallel",
    "parallel_config.pipeline_stage": "backend.ascend.pipeline_stage",
    "runner_config.batch_size": "train.per_device_train_batch_size",
    "runner_config.epochs": "train.num_train_epochs",
    "runner_config.gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "runner_wrapper.type": "none: the step cell keeps the loss normaliser",
    "runner_wrapper.accumulation": "train.gradient_accumulation_steps",
    "runner_wrapper.world_size": "none: --nproc and --nnodes decide it",
    "runner_wrapper.borders": "data.packing",
    "runner_wrapper.nf4_block_size": "model.load_in_4bit",
    "model.model_config.use_eod_attn_mask_compression": "data.packing",
    "model.model_config.pad_token_id": "model.pad_token",
    "model.model_config.seq_length": "data.cutoff_len",
    "train_dataset.batch_size": "train.per_device_train_batch_size",
    "lr_schedule.lr_scheduler_type": "train.lr_scheduler_type",
    "lr_schedule.lr_scheduler_kwargs": "train.lr_scheduler_kwargs",
    "load_checkpoint": "model.name_or_path",
    "resume_training": "none yet",
}


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuse overrides of what the recipe decides.

    Raises:
        UserError: for every such key, with the recipe's own key.
    """
    raise_collected(
        f"recipe: backend.ascend.overrides: {name} must be left to the recipe, got {value!r}; its key: {instead}"
        for name, instead in OWNED.items()
        if (value := _value_at(overrides, name)) is not None
    )


def _value_at(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def check_keys(config: Mapping[str, Any]) -> None:
    """Hold every key of a whole configuration against what MindFormers reads.

    Raises:
        UserError: for every key that nothing reads, all at once, with a did-you-mean.
    """
    problems = []
    for place, given, known in _sections(config):
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(key, sorted(known), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                name = f"{place}.{key}" if place else key
                problems.append(
                    f"recipe: backend.ascend.overrides: {name} must be a key that MindFormers reads, "
                    f"got an unknown one{hint}"
                )
    raise_collected(problems)


def _sections(config: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str], set[str]]]:
    """Each section's place, the keys in it, and the keys it may have."""
    yield "", config, {*CONFIG_NAME_TO_CLASS, *GeneralConfig.keys(), *READ_BUT_UNLISTED} - {"general_config"}
    for name in ("runner_config", "parallel_config", "recompute_config"):
        yield name, config.get(name, {}), set(CONFIG_NAME_TO_CLASS[name].keys())
    for name, kind in REGISTERED.items():
        section = config[name]
        yield name, section, _arguments(MindFormerRegister.get_cls(kind, section["type"])) | {"type"}
    for number, section in enumerate(config["callbacks"]):
        known = _arguments(MindFormerRegister.get_cls(MindFormerModuleType.CALLBACK, section["type"]))
        yield f"callbacks.{number}", section, known | {"type"}
    yield "context", config["context"], {*_Context.setters} | {"mode"}
    yield "parallel", config["parallel"], set(_set_auto_parallel_context_func_map)
    yield from _model_sections(config["model"])
    yield from _dataset_sections(config["train_dataset"])


def _model_sections(model: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str], set[str]]]:
    settings = model["model_config"]
    yield "model", model, {"model_config", "arch"}
    known = _arguments(MindFormerRegister.get_cls(MindFormerModuleType.CONFIG, settings["type"]))
    yield "model.model_config", settings, known | {"type", "pet_config"}
    if "pet_config" in settings:
        known = _arguments(LoraConfig) | {"pet_type"}
        yield "model.model_config.pet_config", settings["pet_config"], known


def _dataset_sections(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str], set[str]]]:
    yield "train_dataset", dataset, _arguments(CausalLanguageModelDataset)
    known = _arguments(MindDataset) | {"type", "dataset_dir"}
    yield "train_dataset.data_loader", dataset["data_loader"], known


def _arguments(kind: type) -> set[str]:
    """The named arguments of a class's constructors, its parents' included: they are passed up."""
    names: set[str] = set()
    for parent in kind.__mro__:
        for name in ("__init__", "__new__"):
            constructor = getattr(parent.__dict__.get(name), "__func__", parent.__dict__.get(name))
            if inspect.isfunction(constructor):  # classes written in C++ have others
                # The decorator of MindSpore's optimizers does not say what it wraps; it calls it fn.
                wrapped = inspect.getclosurevars(constructor).nonlocals.get("fn", constructor)
                parameters = inspect.signature(inspect.unwrap(wrapped)).parameters.values()
                names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return names - {"self", "cls"}
