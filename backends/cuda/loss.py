"""The loss of a micro-batch, with logits only where a next token is trained."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from twintune.backends.cuda.chunked_loss import chunked_losses
from twintune.backends.cuda.device import put_on
from twintune.backends.cuda.prefix import prefix_arguments
from twintune.converters.rows import IGNORED, Row
from twintune.errors import UserError

NOTHING: Mapping[str, Any] = MappingProxyType({})


def trained_tokens(rows: Sequence[Row]) -> int:
    """How many tokens of these rows are trained; a row's first token has nothing to be predicted from."""
    return sum(row.trained_tokens for row in rows)


def pad_right(rows: Sequence[Row], pad_token_id: int, device: str) -> tuple[Any, Any]:
    """Pad rows to the longest of them.

    Returns:
        input_ids and labels, int64 [rows, longest].
    """
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.input_ids)] = torch.from_numpy(row.input_ids.astype(np.int64))
        labels[number, : len(row.labels)] = torch.from_numpy(row.labels.astype(np.int64))
    return put_on(input_ids, device), put_on(labels, device)


def token_losses(model: Any, input_ids: Any, labels: Any, attention: Mapping[str, Any] = NOTHING) -> Any:
    """-log p of every trained token, row after row, float32 [trained tokens] with its graph.

    The head is applied to the trained positions only, some at a time (see chunked_losses), so that neither a
    [rows, length, vocabulary] nor a [trained tokens, vocabulary] tensor exists.
    No padding is hidden: pads stand at the end, where causal attention never looks from a trained token. `attention`
    holds the borders of packed conversations.
    """
    causal = model.get_base_model()
    arguments = {"input_ids": input_ids, "use_cache": False, **attention, **prefix_arguments(model, len(input_ids))}
    if len(arguments) == 2:
        # Nothing hidden, said in so many words: without it transformers 4.57 takes plain rows for packed ones, and
        # gives every layer a mask of [rows, 1, length, length] in place of torch's causal kernel.
        arguments["attention_mask"] = torch.ones_like(input_ids)
    hidden = causal.get_decoder()(**arguments).last_hidden_state  # [rows, length, hidden]
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return chunked_losses(causal.get_output_embeddings(), hidden[:, :-1][trained], targets[trained])


class TokenLosses(torch.nn.Module):  # type: ignore[misc]  # torch is not read by mypy here
    """token_losses of a model as a module, which others can wrap as they wrap a network."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        """As token_losses."""
        return token_losses(self.model, *inputs)


def require_plain_head(model: Any) -> None:
    """Compare the logits that token_losses takes with the model's own, once, on a short row.

    Raises:
        UserError: for an architecture that scales or caps its logits after the head.
    """
    causal = model.get_base_model()
    row = torch.arange(1, 9, device=causal.device)[None] % causal.config.vocab_size
    with torch.no_grad():
        expected = causal(input_ids=row, use_cache=False).logits
        hidden = causal.get_decoder()(input_ids=row, use_cache=False).last_hidden_state
        computed = causal.get_output_embeddings()(hidden)
    if not torch.allclose(computed, expected, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"model.name_or_path must be an architecture whose logits are its head's output, got "
            f"{causal.config.model_type}, which changes them afterwards; choose a llama, mistral, phi or qwen2"
        )
