"""A Hugging Face causal language model with a LoRA adapter on it, every tensor accounted for."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.cuda.dropout import put_on_dropout
from twintune.backends.cuda.nf4 import finish_loading, loading_arguments
from twintune.backends.job import Lora, Quantization
from twintune.backends.matching import check_matrices
from twintune.converters.saved_modules import PEFT_PREFIX, require_own_head
from twintune.errors import UserError, raise_collected

WHOLE = ".modules_to_save.default."  # PEFT's copy of a module that is trained whole
PREFIX = "prompt_encoder."  # opens the names of all that prefix tuning trains


def load_base(folder: Path, device: str, dtype: str, quantization: Quantization | None = None) -> Any:
    """Load a transformers model from safetensors in a folder, frozen and in eval mode; in 4 bits where asked to.

    Raises:
        UserError: if there are no whole safetensors, or a weight is missing, left over or of another
            shape (transformers would only warn, and go on with random numbers).
    """
    from transformers.utils.logging import disable_progress_bar

    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: model.name_or_path must hold *.safetensors, got none; "
            "save the model with transformers' save_pretrained"
        )
    disable_progress_bar()  # the front end shows what is going on
    torch.set_float32_matmul_precision("highest")  # no TF32: float32 must mean the same on every machine
    model, report = _from_pretrained(folder, dtype, loading_arguments(quantization, dtype))
    raise_collected(
        f"{folder}: the safetensors must match config.json, got {problem.replace('_', ' ')} {key}"
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(map(str, report[problem]))
    )
    _leave_out_dropout(model)
    finish_loading(model, quantization)
    return model.to(device).requires_grad_(False).eval()


def _leave_out_dropout(model: Any) -> None:
    """The other backend's networks have none in the base (models.unused_dropouts tells the user)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _from_pretrained(folder: Path, dtype: str, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused by load_base with the others
            **arguments,
        )
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder}: the model must be whole and readable, got: {error}") from None
    return model, report


def recompute_activations(base: Any) -> None:
    """Keep no activations inside a decoder layer: they are computed again for its gradient."""
    if hasattr(base, "activation_checkpointing_enable"):  # transformers 5's name
        base.activation_checkpointing_enable()
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def put_on_adapter(base: Any, lora: Lora, tensors: Mapping[str, NDArray[np.float32]], source: Path) -> Any:
    """Wrap a base model with PEFT's LoRA and set all that is trained, float32 by PEFT file name.

    PeftModel.from_pretrained is not used because it only warns about missing and unexpected names.

    Raises:
        UserError: for every name or shape in which `source` and the model differ, and as require_own_head.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        modules_to_save=list(lora.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )
    require_own_head(lora.modules_to_save, base.config.tie_word_embeddings)
    model = wrap(base, config)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.float()  # PEFT leaves whole modules in the base's dtype
    put_on_dropout(model, lora)
    put_in_adapter(model, tensors, str(source))
    return model


def wrap(base: Any, config: Any) -> Any:
    """A base model in PEFT's wrapper, as one of PEFT's configurations says."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft 0.18 takes every architecture that can be tied for tied
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        # peft 0.21 asks transformers 5 for gradient checkpointing by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(base, config)


def put_in_adapter(model: Any, tensors: Mapping[str, NDArray[np.float32]], source: str) -> None:
    """Set all trained parameters of a PEFT model, float32 by PEFT file name.

    Raises:
        UserError: for every name or shape in which `source` and the model differ.
    """
    parameters = adapter_parameters(model)
    check_matrices(parameters, tensors, source)
    for name, parameter in parameters.items():
        put_in(parameter, tensors[name])


def put_in(parameter: Any, tensor: NDArray[np.float32]) -> None:
    """Set a parameter in the dtype that it has."""
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensor)))


def adapter_parameters(model: Any) -> dict[str, Any]:
    """The trained parameters of a PEFT model: LoRA matrices, whole modules, or a prefix, by PEFT's names."""
    return {
        name.replace(WHOLE, ".").replace(".default.weight", ".weight").replace(f"{PREFIX}default.", PREFIX): parameter
        for name, parameter in model.named_parameters()
        if _is_trained(name)
    }


def base_parameters(model: Any) -> dict[str, Any]:
    """The parameters of a PEFT model that are the base's own, by Hugging Face name; tied ones once."""
    return {
        name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(".original_module.", "."): parameter
        for name, parameter in model.named_parameters()
        if not _is_trained(name)
    }


def _is_trained(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name or WHOLE in name or name.startswith(PREFIX)


def adapter_tensors(model: Any) -> dict[str, NDArray[np.float32]]:
    """All trained parameters as float32 NumPy arrays by PEFT's names, A [r, in] and B [out, r]."""
    return {name: to_numpy(parameter) for name, parameter in adapter_parameters(model).items()}


def to_numpy(tensor: Any) -> NDArray[np.float32]:
    """A copy as float32 (exact from bfloat16), on the host."""
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return array


def autocast(device: str, dtype: str) -> Any:
    """The context of every forward: bfloat16 or float16 autocast, or nothing for float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device, dtype=getattr(torch, dtype))
