"""Where the cuda backend computes and in which dtype: chosen once, with the reason."""

from typing import Any

import torch

from twintune.backends import Choice, Device
from twintune.errors import UserError


def choose_device(asked: str) -> Choice:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        UserError: for a device that this backend does not drive, or that is not here.
    """
    if asked not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"backend.device must be auto, cpu or cuda with --backend cuda, got {asked}; "
            "for an NPU use --backend ascend"
        )
    if asked == "cpu":
        return Choice("cpu", "as asked")
    if torch.cuda.is_available():
        return Choice("cuda", f"{'as asked' if asked == 'cuda' else 'found'}: {torch.cuda.get_device_name()}")
    if asked == "cuda":
        raise UserError(
            f"backend.device must be a device that is here, got cuda; torch {torch.__version__} finds none, "
            "check nvidia-smi and install a CUDA build of torch, or use --device cpu"
        )
    return Choice("cpu", f"torch {torch.__version__} finds no CUDA device")


def describe_device(device: str) -> Device:
    """The GPU at hand, or a CPU."""
    if device == "cpu":
        return Device("CPU", None)
    found = torch.cuda.get_device_properties(device)
    return Device(found.name, found.total_memory)


def choose_dtype(asked: str, device: str) -> Choice:
    """Resolve `auto`, `float32`, `bfloat16` or `float16`: the dtype of the base weights and of the forward.

    Adapter, gradients and optimizer are float32 whatever is chosen.

    Raises:
        UserError: for bfloat16 on a GPU that lacks it.
    """
    has_bfloat16 = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bfloat16" and not has_bfloat16:
        raise UserError(
            f"backend.dtype must be float16 or float32 on {torch.cuda.get_device_name()}, got bfloat16, which it "
            "lacks; use backend.dtype=float16"
        )
    if asked == "auto" and device == "cuda" and has_bfloat16:
        return Choice("bfloat16", "the GPU has it; adapter, gradients and optimizer are float32, TF32 is off")
    if asked in ("bfloat16", "float16"):
        return Choice(asked, "as asked; adapter, gradients and optimizer are float32, TF32 is off")
    reason = "as asked" if asked == "float32" else f"{device} without fast bfloat16"
    return Choice("float32", f"{reason}; TF32 is off, so that backends can be compared")


def choose_cache(asked: str) -> Choice:
    """Resolve `auto` or `static`.

    Raises:
        UserError: for `paged`, which is MindFormers'.
    """
    if asked == "paged":
        raise UserError(
            "generate.cache_implementation must be auto or static with --backend cuda, got 'paged'; use static, or "
            "serve what `twintune export` writes with vLLM (docs/serving.md)"
        )
    return Choice("static", "as asked" if asked == "static" else "memory for a whole batch, taken once")


def put_on(tensor: Any, device: str) -> Any:
    """A tensor of the CPU on a device; a GPU copies it from pinned memory, and nobody waits."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
