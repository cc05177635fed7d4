"""A base model whose decoder's linear layers are bitsandbytes' NF4: loading, and its weights as numbers.

Of what peft.prepare_model_for_kbit_training does, load_base does the freezing. Gradients of inputs need no help, as
activations are recomputed without re-entrance. Norms, embeddings and head are not cast to float32: they stay as without
4 bits, on both backends.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twintune.backends.job import Quantization
from twintune.converters.nf4 import ABSMAX_BLOCK_SIZE, absmax_code_book, quantize_absmax
from twintune.errors import UserError


def loading_arguments(quantization: Quantization | None, dtype: str) -> dict[str, Any]:
    """What transformers' from_pretrained is given besides, to quantize each weight as it comes from its file.

    On the CPU: a GPU's kernel takes a reciprocal that is not rounded as IEEE says, and gives a number between two codes
    now and then the other one.

    Raises:
        UserError: if bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "recipe: model.load_in_4bit must have the package bitsandbytes, got none; "
            "run: pip install 'bitsandbytes>=0.50,<0.51'"
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,  # see finish_loading
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=torch.uint8,
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def finish_loading(model: Any, quantization: Quantization | None) -> None:
    """Quantize absmax, if asked to, and keep bitsandbytes in the dtype of the job.

    The front end quantizes absmax: torch's mean depends on the processor and its threads, and would shift every weight.
    """
    if quantization is None:
        return
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)  # accelerate's, which take all inputs back to the CPU
    for module in model.modules():
        if _is_nf4(getattr(module, "weight", None)):
            # Without gradients it would repack the weight, and compute in bfloat16 whatever the dtype.
            module.support_avx512bf16_for_cpu = False
            if quantization.double_quant:
                _quantize_absmax(module.weight.quant_state)


def _quantize_absmax(state: Any) -> None:
    from bitsandbytes.functional import QuantState

    quantized = quantize_absmax(state.absmax.numpy())
    state.absmax = torch.from_numpy(quantized.codes)
    state.offset = torch.tensor(quantized.offset)
    state.state2 = QuantState(
        absmax=torch.from_numpy(quantized.scales),
        code=torch.from_numpy(absmax_code_book().copy()),
        blocksize=ABSMAX_BLOCK_SIZE,
        dtype=torch.float32,
    )
    state.nested = True


def _is_nf4(parameter: Any) -> bool:
    return getattr(parameter, "quant_state", None) is not None


@dataclass(frozen=True)
class Weight:
    """A parameter as the weight that it is or stands for.

    Attributes:
        parameter: of torch, or bitsandbytes' Params4bit.
    """

    parameter: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.parameter.quant_state.shape if _is_nf4(self.parameter) else self.parameter.shape)

    def read(self) -> Any:
        """The weight as it is multiplied, a tensor in the dtype of the network."""
        if not _is_nf4(self.parameter):
            return self.parameter
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.parameter.data, self.parameter.quant_state)

    def put(self, tensor: NDArray[np.float32]) -> None:
        """Take another weight, rounded to the dtype of the network, and to NF4 where it has codes."""
        values = torch.from_numpy(np.ascontiguousarray(tensor))
        if not _is_nf4(self.parameter):
            with torch.no_grad():
                self.parameter.copy_(values)
            return
        from bitsandbytes.functional import quantize_4bit

        old = self.parameter.quant_state
        codes, state = quantize_4bit(values.to(old.dtype), blocksize=old.blocksize, quant_type=old.quant_type)
        if old.nested:
            _quantize_absmax(state)
        state.to(self.parameter.device)
        self.parameter.data = codes.to(self.parameter.device)
        self.parameter.quant_state = state
