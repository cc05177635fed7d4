"""LoRA's dropout by formula: the same numbers are dropped on both backends, in every run and after every resume.

A token's odd number times a channel's, modulo 2^32, stands for a uniform draw (multiplicative hashing; Dietzfelbinger
et al. 1997, "A reliable randomized algorithm for the closest-pair problem"). A framework's own generator would not do:
MindSpore's draws in graph mode differ from run to run, cannot be read or set, and differ between loss and gradient.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

PEFT_MATRIX = ("base_model.model.", ".lora_A.weight")  # around a module's name in the name of its A


def token_numbers(seed: int, place: int, length: int) -> NDArray[np.int32]:
    """The odd numbers of a row's tokens, int32 [length]; those of a longer row begin with them.

    Args:
        seed: of the job.
        place: of the row in the whole run, counted from 0 through all optimizer steps.
        length: tokens.
    """
    return _odd_numbers(np.array([seed, place], np.uint64), length)


def channel_numbers(module: str, width: int) -> NDArray[np.int32]:
    """The odd numbers of the channels that enter a LoRA module, int32 [width].

    Args:
        module: its Hugging Face name, such as `model.layers.0.self_attn.q_proj`.
        width: channels.
    """
    digest = hashlib.sha256(module.encode()).digest()
    return _odd_numbers(np.frombuffer(digest, np.dtype("<u8"), count=2), width)


def _odd_numbers(key: NDArray[np.uint64], count: int) -> NDArray[np.int32]:
    # Of NumPy's generators only the raw numbers of a bit generator stay the same in all versions (NEP 19).
    high = np.random.Philox(key=key).random_raw(count) >> np.uint64(32)
    return high.astype(np.uint32).view(np.int32) | np.int32(1)


def first_kept(lora_dropout: float) -> int:
    """The product, as a signed number of 32 bits, from which on an element is kept."""
    return round(lora_dropout * 2**32) - 2**31


def module_of_matrix(name: str) -> str:
    """The Hugging Face name of the module that a LoRA A belongs to, by its PEFT name."""
    start, end = PEFT_MATRIX
    return name.removeprefix(start).removesuffix(end)


def kept(tokens: NDArray[np.int32], channels: NDArray[np.int32], lora_dropout: float) -> NDArray[np.bool_]:
    """Which elements stay, bool [tokens, channels]: the reference that the backends are held against."""
    with np.errstate(over="ignore"):  # modulo 2^32
        products = np.multiply.outer(tokens, channels)
    return np.asarray(products >= first_kept(lora_dropout))
