"""An adapter put into its base for good: sharded safetensors that plain transformers loads, checked before kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twintune.adapter_base import base_of
from twintune.artifacts import new_folder, sha256_file, write_json
from twintune.backends import Choice, choose_backend, load_backend
from twintune.backends.job import Lora
from twintune.chat import adapter_recipe, model_section
from twintune.converters.adapter import WEIGHTS, read_adapter_for
from twintune.converters.companions import copy_companions
from twintune.converters.merged_weights import merged_specs, merged_weights
from twintune.converters.names import linear_shapes
from twintune.converters.sharded import parse_shard_size, write_index, write_sharded
from twintune.converters.stored_tensors import WEIGHT_DTYPES
from twintune.converters.tokens import load_tokenizer
from twintune.converters.weights import find_weights
from twintune.errors import UserError
from twintune.merge_check import MergeCheck, Place, check_merge, render_questions
from twintune.models import read_model_config
from twintune.recipe_sections import ModelSection
from twintune.resizing import trained_model
from twintune.serving_files import write_serving_files

MERGE = "merge.json"


@dataclass(frozen=True)
class Merge:
    """What came of a merge.

    Attributes:
        folder: of the merged model.
        lora: what was merged.
        choices: what was chosen, and why, by name.
        layers: linear layers that LoRA changed; lora.modules_to_save names the modules that were replaced whole.
        files: of the weights.
        check: merged against base with adapter.
        notes: what the user must know besides.
    """

    folder: Path
    lora: Lora
    choices: Mapping[str, Choice]
    layers: int
    files: tuple[str, ...]
    check: MergeCheck
    notes: tuple[str, ...]


def merge_adapter(
    adapter: Path,
    output_dir: Path,
    *,
    model: str | None = None,
    dtype: str | None = None,
    backend: str = "auto",
    device: str = "auto",
    max_shard_size: str = "5GB",
) -> Merge:
    """Merge a PEFT adapter into its base, and keep the result only if it computes the same.

    Args:
        adapter: PEFT folder; its recipe.yaml or adapter_config.json names the base.
        output_dir: a new folder.
        model: the base, in place of the named one.
        dtype: of the written weights; None takes the base's own.
        backend: where the check runs: auto, cuda or ascend.
        device: auto, cpu, cuda or npu.
        max_shard_size: such as 5GB; a GB is 10^9 bytes.

    Raises:
        UserError: for all that does not fit, and if merged and adapter differ by more than the tolerance.
    """
    shard_size = parse_shard_size(max_shard_size)
    base = base_of(adapter, model)
    recipe = adapter_recipe(adapter)
    section = model_section(recipe, base.value)
    folder = trained_model(section)
    config = read_model_config(folder)
    lora, tensors = read_adapter_for(adapter, config)
    found = find_weights(folder, config)
    kind = _choose_dtype(folder, {tensor.spec.dtype.name for tensor in found.tensors.values()}, dtype)
    chosen = choose_backend(backend)
    framework = load_backend(chosen.value)
    where = framework.choose_device(device)
    tokenizer = load_tokenizer(folder, section.pad_token, added_tokens=section.added_tokens)
    questions = render_questions(recipe, tokenizer)
    with new_folder(output_dir) as aside:
        specs = merged_specs(found, kind.value)
        weights = merged_weights(found, lora, tensors, kind.value)
        files = write_sharded(aside, weights, specs, shard_size, {"format": "pt"})
        write_index(aside, files, specs)
        copy_companions(folder, aside, {kind.value})
        serving_notes = write_serving_files(aside, recipe, tokenizer)
        place = Place(framework, where.value, tokenizer)
        check = check_merge(place, folder, adapter, aside, questions, kind.value, config["num_hidden_layers"])
        _require_same(output_dir, check)
        done = Merge(
            folder=output_dir,
            lora=lora,
            choices={
                "model": base,
                "dtype": kind,
                "checked on": chosen,
                "device": where,
                "questions": questions.template,
            },
            layers=len(linear_shapes(config, lora.target_modules)),
            files=tuple(sorted(set(files.values()))),
            check=check,
            notes=(*_notes(section), *serving_notes),
        )
        write_json(aside / MERGE, _summary(done, adapter))
    return done


def _choose_dtype(folder: Path, stored: set[str], asked: str | None) -> Choice:
    if asked is not None:
        if asked not in WEIGHT_DTYPES:
            raise UserError(f"command line: --dtype must be one of {', '.join(WEIGHT_DTYPES)}, got {asked!r}")
        return Choice(asked, "as asked")
    if len(stored) != 1:
        raise UserError(f"{folder}: the weights must have one dtype, got {', '.join(sorted(stored))}; give --dtype")
    return Choice(next(iter(stored)), "as the base is stored")


def _require_same(output_dir: Path, check: MergeCheck) -> None:
    if not check.holds:
        raise UserError(
            f"{output_dir}: logits of the merged model must be within {check.tolerance:.1e} of the adapter's, in the "
            f"mean {check.mean_tolerance:.1e} ({check.rule}), got {check.largest_difference:.1e} and "
            f"{check.mean_difference:.1e}; nothing was kept: merge in float32, and report this if it stays"
        )


def _notes(section: ModelSection) -> tuple[str, ...]:
    notes = []
    if section.load_in_4bit:
        notes.append(
            "the adapter was trained on a base in 4 bits and is merged into the base as it is stored, as is usual with "
            "PEFT: answers differ from those of generate, which loads the base in 4 bits again"
        )
    if section.added_tokens and not section.pad_to_multiple_of:  # a resized model's tokenizer has them
        notes.append(
            f"the tokenizer's files are the base's: add {', '.join(section.added_tokens)} as special tokens where you "
            "load them, as model.added_tokens did"
        )
    return tuple(notes)


def _summary(merge: Merge, adapter: Path) -> dict[str, Any]:
    base, dtype = merge.choices["model"], merge.choices["dtype"]
    return {
        "base_model": Path(base.value).name,
        "adapter_sha256": sha256_file(adapter / WEIGHTS),
        "lora": asdict(merge.lora),
        "layers": merge.layers,
        "dtype": dtype.value,
        "backend": merge.choices["checked on"].value,
        "device": merge.choices["device"].value,
        "check": asdict(merge.check),
        "notes": list(merge.notes),
    }
