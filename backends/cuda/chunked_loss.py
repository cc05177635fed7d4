"""-log p of many tokens without the logits of all of them: the head goes over CHUNK positions at a time.

With a frozen head, which LoRA has, a token's loss tells the gradient of its position at once:
(softmax(logits) - one_hot(target)) @ weight, times whatever the loss is multiplied with later. Taken in the forward, it
leaves [positions, hidden size] to keep in place of [positions, vocabulary], and costs no second head
(Hsu et al. 2024, Liger Kernel, arXiv:2410.10989). A trained head needs each position's weight for its own gradient, and
has its logits computed again.
"""

from typing import Any

import torch
from torch.nn.functional import nll_loss
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # positions; fewer leave a GPU waiting for the head's weight


def chunked_losses(head: Any, hidden: Any, targets: Any) -> Any:
    """Cross entropy of every position, summed over the vocabulary in float32.

    Args:
        head: a linear layer to the vocabulary.
        hidden: what it is applied to, [positions, hidden size].
        targets: int64 [positions].

    Returns:
        float32 [positions], with a graph where `hidden` or `head` have one.
    """
    if not any(parameter.requires_grad for parameter in head.parameters()):
        return _FrozenHead.apply(hidden, head, targets)
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([checkpoint(_losses, head, *chunk, use_reentrant=False) for chunk in chunks])


def _losses(head: Any, hidden: Any, targets: Any) -> Any:
    return nll_loss(_log_softmax(head, hidden), targets, reduction="none")


def _log_softmax(head: Any, hidden: Any) -> Any:
    # torch.log_softmax adds up a row one after the other on a CPU: 1.3e-5 off over 49,152 words, always to one side.
    logits = head(hidden).float()
    return logits - torch.logsumexp(logits, 1, keepdim=True)


class _FrozenHead(torch.autograd.Function):  # type: ignore[misc]  # torch is not read by mypy here
    """chunked_losses of a head that is not trained."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, head: Any, targets: Any) -> Any:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for first in range(0, len(hidden), CHUNK):
            chunk = slice(first, first + CHUNK)
            place = None if gradient is None else gradient[chunk]
            losses[chunk] = _chunk(head, hidden[chunk], targets[chunk, None], place)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(gradient.dtype), None, None


def _chunk(head: Any, hidden: Any, targets: Any, gradient: Any) -> Any:
    """The losses of some positions; their gradients with respect to `hidden` go into `gradient`, if there is one."""
    log_p = _log_softmax(head, hidden)
    losses = -log_p.gather(1, targets)[:, 0]
    if gradient is not None:
        difference = log_p.exp_().scatter_add_(1, targets, torch.full_like(targets, -1.0, dtype=torch.float32))
        gradient.copy_(difference.to(head.weight.dtype) @ head.weight)
    return losses
