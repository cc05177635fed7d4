"""Liger's Triton kernels in a model: RMSNorm, and the product of gate and up (Hsu et al. 2024, arXiv:2410.10989).

Not its loss, as chunked_loss takes the head at trained positions only; nor its rotary embedding, which it has for whole
processes alone.
"""

import sys
from typing import Any


def put_on_liger(base: Any) -> None:
    """Replace the forward of the norms and gated networks of a transformers model, in place."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance  # as transformers' Trainer does

    of_all_models = vars(sys.modules[type(base).__module__])
    before = dict(of_all_models)
    _apply_liger_kernel_to_instance(
        model=base, rope=False, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
    of_all_models.update(before)  # Liger puts its classes there too, where every later model would take them
