"""Hugging Face base weights to a MindFormers checkpoint, every parameter accounted for on both sides."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twintune.artifacts import cache_folder, new_folder, sha256_file, sha256_json, write_json
from twintune.converters.names import base_names
from twintune.errors import UserError, raise_collected

CHECKPOINT = "base.ckpt"
# Buffers that old Hugging Face files carry; both frameworks compute them from the configuration.
DERIVED = "rotary_emb.inv_freq"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in name order.

    Raises:
        UserError: if there is none (pickled .bin weights are not read).
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: a model folder must hold model*.safetensors, got none; pickled weights are not read: "
            "save them once with save_pretrained(..., safe_serialization=True)"
        )
    return files


def read_weights(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every base weight of a folder as float32 (exact from float16 and bfloat16), one at a time.

    Args:
        folder: Hugging Face folder, in one file or in shards.
        config: its checked config.json, which says which weights there must be.

    Raises:
        UserError: for every missing or unexpected weight, all at once, before any is given.
    """
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then reads
    from safetensors import safe_open

    places = _places(folder)
    expected = base_names(config)
    tied = config["tie_word_embeddings"]
    unexpected = sorted(
        name
        for name in places.keys() - expected.keys()
        if not name.endswith(DERIVED) and not (tied and name == "lm_head.weight")
    )
    raise_collected(
        [f"{folder}: {name} must be in the weights, got no such tensor" for name in expected if name not in places]
        + [f"{folder}: {name} must not be in the weights of a {config['model_type']}" for name in unexpected]
    )
    for file in sorted({places[name] for name in expected}):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                if name in expected:
                    yield name, tensors.get_tensor(name).astype(np.float32)


def _places(folder: Path) -> dict[str, Path]:
    from safetensors import SafetensorError, safe_open

    places: dict[str, Path] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "np") as tensors:
                names = tensors.keys()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: must be a whole safetensors file, got: {error}") from None
        raise_collected(
            f"{file}: {name} must be in one file only, got it in {places[name].name} too; remove the older weights"
            for name in names
            if name in places
        )
        places |= dict.fromkeys(names, file)
    return places


def base_checkpoint(folder: Path, config: Mapping[str, Any], dtype: str) -> Path:
    """The MindFormers .ckpt of a Hugging Face folder, converted once and cached by the hash of both.

    Args:
        folder: Hugging Face folder.
        config: its checked config.json.
        dtype: float32, float16 or bfloat16, as the network will hold the weights.

    Returns:
        Path of a `base.ckpt` that `load_param_into_net` takes whole.
    """
    source = {file.name: sha256_file(file) for file in weight_files(folder)}
    key = sha256_json({"source": source, "config": base_names(config), "dtype": dtype})
    cached = cache_folder() / "base" / key
    if not cached.is_dir():
        with new_folder(cached) as aside:
            _write_checkpoint(aside / CHECKPOINT, folder, config, dtype)
            write_json(aside / "manifest.json", {"source": source, "dtype": dtype, "file": CHECKPOINT})
    return cached / CHECKPOINT


def _write_checkpoint(path: Path, folder: Path, config: Mapping[str, Any], dtype: str) -> None:
    import mindspore as ms

    names = base_names(config)
    kind = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[dtype]
    parameters = [
        {"name": names[name], "data": ms.Tensor(array).astype(kind)} for name, array in read_weights(folder, config)
    ]
    ms.save_checkpoint(parameters, str(path))
