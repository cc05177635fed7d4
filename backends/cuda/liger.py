"""Liger's Triton kernels in a model: RMSNorm, and the product of gate and up (Hsu et al. 2024, arXiv:2410.10989).

Not its loss, as chunked_loss takes the head at trained positions only; nor its rotary embedding, which it puts into
transformers' module for every model of the process.
"""

from typing import Any


def put_on_liger(base: Any) -> None:
    """Replace the forward of the norms and gated networks of a transformers model, in place."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance  # as transformers' Trainer does

    _apply_liger_kernel_to_instance(
        model=base, rope=False, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
