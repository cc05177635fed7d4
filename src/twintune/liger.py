"""Whether a run takes Liger's kernels, decided before any work."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from twintune.errors import raise_collected
from twintune.recipe import Recipe

FAMILIES = ("llama", "mistral", "qwen2")  # of those that twintune trains


def choose_liger(recipe: Recipe, backend: str, device: str, config: Mapping[str, Any]) -> bool:
    """What backend.cuda.use_liger_kernel asks for; False with another backend.

    Raises:
        UserError: without a GPU, the package, or kernels for the model.
    """
    asked = backend == "cuda" and recipe.backend.cuda.use_liger_kernel
    if asked:
        raise_collected(
            f"recipe: backend.cuda.use_liger_kernel must be false {problem}" for problem in _problems(device, config)
        )
    return asked


def _problems(device: str, config: Mapping[str, Any]) -> Iterator[str]:
    if device != "cuda":
        yield f"where the device is no GPU, got true on {device}; Triton, which the kernels are written in, needs one"
    if not find_spec("liger_kernel"):
        yield "where liger-kernel is not installed, got true; run: pip install 'twintune[cuda,liger]'"
    if config["model_type"] not in FAMILIES:
        yield f"for a {config['model_type']}, got true; Liger has kernels for {', '.join(FAMILIES)}"
