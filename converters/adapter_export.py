"""LoRA adapters from PEFT to MindFormers and back, bit for bit: float32 under other names, no transpose."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import new_folder, sha256_file, write_json
from twintune.backends.job import Lora
from twintune.converters.adapter import matrix_problems, read_adapter_for, write_adapter
from twintune.converters.mindformers_adapter import Found, read_matrices, write_matrices
from twintune.converters.names import linear_shapes
from twintune.converters.pet_config import to_pet_config
from twintune.converters.saved_modules import saved_shapes, trained_names
from twintune.errors import UserError, raise_collected

FileFormat = Literal["ckpt", "safetensors"]
SETTINGS = "adapter.json"


@dataclass(frozen=True)
class AdapterExport:
    """What came of an export.

    Attributes:
        file: what was written and read back.
        lora: the settings that it has now.
        matrices: how many tensors were written, all equal to the source's bit for bit.
        left_out: how many tensors of the source are no adapter, by kind.
        step: the optimizer step at which the source was saved, where it says so.
        square: layers of which no shape tells whether a matrix is transposed, as the rank is their width.
    """

    file: Path
    lora: Lora
    matrices: int
    left_out: Mapping[str, int] = field(default_factory=Counter)
    step: int | None = None
    square: tuple[str, ...] = ()


def export_to_mindformers(
    adapter: Path, config: Mapping[str, Any], output_dir: Path, file_format: FileFormat, base_model: str
) -> AdapterExport:
    """Write a PEFT adapter under MindFormers' names, with its settings in `adapter.json` beside it.

    Args:
        adapter: PEFT folder.
        config: the model's checked config.json.
        output_dir: a new folder for `adapter.ckpt` or `adapter.safetensors`.
        file_format: of the matrices, which are float32.
        base_model: kept in the settings.

    Raises:
        UserError: for all that cannot be carried across, and if the file reads back otherwise.
    """
    lora, tensors = read_adapter_for(adapter, config)
    names = trained_names(config, lora)
    name = f"adapter.{file_format}"
    with new_folder(output_dir) as aside:
        write_matrices(aside / name, {names[theirs]: tensor for theirs, tensor in tensors.items()})
        settings = {
            "base_model_name_or_path": base_model,
            "pet_config": to_pet_config(lora),
            "file": name,
            "sha256": sha256_file(aside / name),
        }
        write_json(aside / SETTINGS, settings)
        _check_same(output_dir / name, read_matrices(aside / name, _whole(config, lora)).matrices, tensors)
    return AdapterExport(output_dir / name, lora, len(tensors), square=_square(config, lora))


def export_to_peft(
    source: Path, config: Mapping[str, Any], output_dir: Path, settings: Lora, base_model: str
) -> AdapterExport:
    """Write the LoRA matrices, and modules trained whole, of a MindFormers checkpoint as a PEFT folder.

    Args:
        source: a `.ckpt` or `.safetensors` file, of the trained parameters alone or of a whole training state.
        config: the model's checked config.json.
        output_dir: a new folder.
        settings: what the file does not hold.
        base_model: for base_model_name_or_path.

    Raises:
        UserError: for every matrix that is missing, unknown, misshapen or not finite, and if the folder reads
            back otherwise.
    """
    found = read_matrices(source, _whole(config, settings))
    _check_found(source, found, config, settings)
    with new_folder(output_dir) as aside:
        write_adapter(aside, found.matrices, settings, base_model)
        lora, written = read_adapter_for(aside, config)
        _check_same(output_dir, written, found.matrices)
        if lora != replace(settings, target_modules=lora.target_modules, modules_to_save=lora.modules_to_save):
            raise UserError(f"{output_dir}: the settings must read back as {settings}, got {lora}")
    return AdapterExport(output_dir, lora, len(written), found.left_out, found.step, _square(config, lora))


def _check_found(source: Path, found: Found, config: Mapping[str, Any], settings: Lora) -> None:
    shapes = linear_shapes(config, settings.target_modules)
    raise_collected(
        [f"{source}: {name} must be LoRA of a layer that PEFT has, got another module" for name in found.unknown]
        + matrix_problems(source, found.matrices, settings.r, shapes, saved_shapes(config, settings.modules_to_save))
        + [
            f"{source}: {name} must be finite, got NaN or infinity"
            for name, tensor in found.matrices.items()
            if not np.isfinite(tensor).all()
        ]
    )


def _check_same(
    place: Path, written: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, NDArray[np.float32]]
) -> None:
    raise_collected(
        f"{place}: {name} must read back as it was written, got other bytes; is the disk full?"
        for name in sorted(wanted.keys() | written.keys())
        if name not in written or name not in wanted or written[name].tobytes() != wanted[name].tobytes()
    )


def _whole(config: Mapping[str, Any], lora: Lora) -> dict[str, str]:
    """The parameters of modules that were trained whole, MindFormers name to PEFT name."""
    return {ours: theirs for theirs, ours in trained_names(config, replace(lora, target_modules=())).items()}


def _square(config: Mapping[str, Any], lora: Lora) -> tuple[str, ...]:
    shapes = linear_shapes(config, lora.target_modules)
    return tuple(module for module, shape in shapes.items() if lora.r in shape)
