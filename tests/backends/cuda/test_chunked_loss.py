"""The loss by chunks is the plain cross entropy, and its memory does not grow with the positions."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from twintune.backends.cuda.chunked_loss import CHUNK, chunked_losses

HIDDEN, VOCABULARY = 16, 1000
LOSS = 1e-6  # of a token, float32, beside losses of about 7
POSITIONS = [1, CHUNK, 2 * CHUNK + 3]  # less than a chunk, one, and a rest behind some

Losses = Callable[[Any, Any, Any], Any]


def plain_losses(head: Any, hidden: Any, targets: Any) -> Any:
    return cross_entropy(head(hidden).float(), targets, reduction="none")


def make_case(positions: int, *, bias: bool = False, trained: bool = False) -> tuple[Any, Any, Any]:
    """A head, hidden states and targets."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(trained)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    hidden = torch.randn(positions, HIDDEN, generator=generator).requires_grad_()
    return head, hidden, torch.randint(0, VOCABULARY, (positions,), generator=generator)


def gradients(losses: Losses, head: Any, hidden: Any, targets: Any) -> list[Any]:
    """Of a sum in which every position has another weight."""
    wanted = [hidden, *(parameter for parameter in head.parameters() if parameter.requires_grad)]
    weights = torch.linspace(-1, 1, len(hidden))
    return list(torch.autograd.grad((losses(head, hidden, targets) * weights).sum(), wanted))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_losses_and_gradients_are_those_of_the_plain_loss(positions: int, bias: bool, trained: bool) -> None:
    case = make_case(positions, bias=bias, trained=trained)
    torch.testing.assert_close(chunked_losses(*case), plain_losses(*case), rtol=LOSS, atol=LOSS)
    for ours, plain in zip(gradients(chunked_losses, *case), gradients(plain_losses, *case), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=LOSS * float(plain.abs().max()))


@pytest.mark.parametrize("trained", [False, True])
def test_bfloat16_is_summed_in_float32(trained: bool) -> None:
    head, hidden, targets = make_case(CHUNK + 1, trained=trained)
    hidden = hidden.detach().bfloat16().requires_grad_()
    if not trained:
        head = head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = (losses(head, hidden, targets) for losses in (chunked_losses, plain_losses))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=LOSS, atol=LOSS)
    expected, got = (torch.autograd.grad(losses.sum(), hidden)[0] for losses in (plain, ours))
    limit = 2**-7 * float(expected.abs().max())  # both round to bfloat16's 8 bits, one softmax and once more
    torch.testing.assert_close(got, expected, rtol=0, atol=limit)


def test_without_gradients_none_is_computed() -> None:
    head, hidden, targets = make_case(CHUNK + 1)
    with torch.inference_mode():
        losses = chunked_losses(head, hidden, targets)
        torch.testing.assert_close(losses, plain_losses(head, hidden, targets), rtol=LOSS, atol=LOSS)
    assert not losses.requires_grad


def peak_bytes(losses: Losses, positions: int) -> int:
    """Bytes of live tensors at most, beyond those that stood before, as torch's allocator tells them."""
    case = make_case(positions)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        gradients(losses, *case)
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    live = most = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        live += event.nbytes()
        most = max(most, live)
    return most


def test_memory_grows_with_the_hidden_size_and_not_with_the_vocabulary() -> None:
    chunk = 4 * CHUNK * VOCABULARY  # bytes of the logits of a chunk
    assert peak_bytes(plain_losses, 8 * CHUNK) > 16 * chunk
    few, many = (peak_bytes(chunked_losses, chunks * CHUNK) for chunks in (2, 8))
    assert few < 2.5 * chunk  # logits and their softmax
    kept = 4 * HIDDEN * CHUNK  # bytes of hidden states of a chunk
    assert many - few < 6 * 4 * kept  # of six chunks more: gradients in and out, losses, targets
