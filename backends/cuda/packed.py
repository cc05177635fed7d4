"""Packed rows on PyTorch: all conversations of a micro-batch in one line, each attending to itself alone.

No mask and no padding exist: attention gets the borders. FlashAttention has a kernel for that; without it
each conversation goes through torch's own causal kernel by itself. On one CPU core that took 0.17 s forward and
backward where a block-diagonal mask over the same 2 x 2,048 tokens (9 heads of 64) took 1.37 s: a masked kernel
computes what it then hides.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from twintune.backends import Choice
from twintune.backends.cuda.device import put_on
from twintune.converters.rows import Row

FLASH = "flash_attention_2"  # transformers' name
BY_CONVERSATION = "sdpa_by_conversation"  # ours


def choose_attention(device: str, dtype: str) -> Choice:
    """The attention of packed rows: FlashAttention where it can run, else torch's own by conversation."""
    if device == "cuda" and dtype != "float32" and find_spec("flash_attn"):
        return Choice(FLASH, "flash_attn is installed: its variable-length kernel")
    if device != "cuda":
        reason = f"FlashAttention does not run on {device}"
    elif dtype == "float32":
        reason = f"FlashAttention does not compute in {dtype}"
    else:
        reason = "flash_attn is not installed"
    return Choice(BY_CONVERSATION, f"{reason}: torch's causal kernel for each conversation")


def set_attention(model: Any, name: str) -> None:
    """Give a transformers model the attention that choose_attention chose."""
    from transformers import AttentionInterface

    AttentionInterface.register(BY_CONVERSATION, attend_by_conversation)
    model.set_attn_implementation(name)


def in_one_line(rows: Sequence[Row], device: str) -> tuple[Any, Any, dict[str, Any]]:
    """Put the conversations of packed rows one after the other.

    Returns:
        input_ids and labels, int64 [1, tokens of all rows], and what the model wants besides: position_ids that
        start again at each conversation, and their borders under transformers' names (FlashAttentionKwargs).
    """
    input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    labels = np.concatenate([row.labels for row in rows]).astype(np.int64)
    lengths = [length for row in rows for length in row.lengths or (len(row.input_ids),)]
    positions = np.concatenate([np.arange(length) for length in lengths])
    borders = put_on(torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), device)
    attention = {
        "position_ids": put_on(torch.from_numpy(positions)[None], device),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    tokens = (put_on(torch.from_numpy(ids)[None], device) for ids in (input_ids, labels))
    return *tokens, attention


def attend_by_conversation(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: None,
    *,
    cu_seq_lens_q: Any,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Any, None]:
    """Causal attention inside each conversation, as transformers calls it.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, head size]; key and value have as many heads or a divisor of it.
        key: see query.
        value: see query.
        attention_mask: always None, as transformers makes no mask for an attention that it does not know.
        cu_seq_lens_q: borders of the conversations, int32 [conversations + 1], from 0 to tokens.
        scaling: of the scores.
        dropout: of the probabilities.
        others: what transformers passes besides.

    Returns:
        [1, tokens, heads, head size], and no attention weights.
    """
    lengths = cu_seq_lens_q.diff().tolist()
    conversations = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in conversations
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None
