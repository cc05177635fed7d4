"""What a model folder holds beside its weights: configuration, tokenizer, generation settings."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from twintune.artifacts import write_json
from twintune.converters.tokens import FAST_FILES, OTHER_FILES, SENTENCEPIECE_FILE
from twintune.models import CONFIG

COMPANIONS = (*FAST_FILES, SENTENCEPIECE_FILE, *OTHER_FILES, "generation_config.json")
DTYPE_KEYS = ("dtype", "torch_dtype")  # transformers 5 and 4


def copy_companions(model: Path, folder: Path, dtypes: Collection[str]) -> tuple[str, ...]:
    """Copy all but the weights; config.json gets the weights' dtype, in which transformers loads them.

    Args:
        model: Hugging Face folder with a config.json.
        folder: to copy into.
        dtypes: names of the dtypes that the weights have there; float32 holds several.

    Returns:
        The names of the copied files.
    """
    present = [name for name in COMPANIONS if (model / name).is_file()]
    for name in present:
        shutil.copyfile(model / name, folder / name)
    config: dict[str, Any] = json.loads((model / CONFIG).read_text(encoding="utf-8"))
    (dtype,) = dtypes if len(dtypes) == 1 else ("float32",)
    keys = [key for key in DTYPE_KEYS if key in config] or ["torch_dtype"]
    if all(config.get(key) == dtype for key in keys):
        shutil.copyfile(model / CONFIG, folder / CONFIG)
    else:
        write_json(folder / CONFIG, config | dict.fromkeys(keys, dtype))
    return (CONFIG, *present)
