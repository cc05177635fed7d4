"""MindFormers' own decoding, `use_past: True`: keys and values in blocks, read by kernels that only an NPU has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from twintune.backends import Choice
from twintune.backends.ascend.row_lengths import RowLengths
from twintune.converters.prefix_adapter import is_prefix
from twintune.errors import UserError
from twintune.models import read_model_config

BLOCK_SIZE = 16  # tokens of a block, as in MindFormers' own configurations for prediction
HEAD_SIZES = (64, 80, 96, 120, 128, 256)  # that mindformers.modules.infer_attention.InferAttention supports
CACHES = ("paged_attention_mgr.key_cache", "paged_attention_mgr.value_cache")  # ends of their parameters' names


def choose_cache(asked: str, model: Path, adapter: Path | None, device: str, dtype: str) -> Choice:
    """`auto`, `static` or `paged` to the cache that texts are decoded with.

    Args:
        asked: `generate.cache_implementation`.
        model: Hugging Face folder.
        adapter: PEFT folder, or None.
        device: `npu` or `cpu`.
        dtype: that the network computes in.

    Raises:
        UserError: for a paged one that MindFormers does not have for them.
    """
    obstacle = next(_obstacles(model, adapter, device, dtype), None)
    if asked == "paged" and obstacle:
        raise UserError(
            "generate.cache_implementation must be auto or static with --backend ascend here, got 'paged' "
            f"({obstacle}); use static"
        )
    if asked == "auto":
        return Choice("static", obstacle) if obstacle else Choice("paged", "MindFormers' own, as an NPU is here")
    return Choice(asked, "as asked")


def _obstacles(model: Path, adapter: Path | None, device: str, dtype: str) -> Iterator[str]:
    """Why there is no paged cache."""
    if device != "npu":
        yield f"MindFormers' PagedAttention has no kernel on a {device.upper()}"
    if dtype == "float32":
        yield "MindFormers' PagedAttention computes in 16 bits"
    config = read_model_config(model)
    if config["model_type"] == "phi":
        yield "MindFormers has no phi"
    if adapter is not None and is_prefix(adapter):
        yield "MindFormers' PagedAttention reads no trained prefix"
    head_size = config["hidden_size"] // config["num_attention_heads"]
    if head_size not in HEAD_SIZES:
        yield f"MindFormers' PagedAttention has no heads of size {head_size}"


def put_on_paged_settings(settings: dict[str, Any], num_blocks: int) -> None:
    """Say in a `model_config` section that the network decodes over a cache of blocks, in graphs for any length.

    The rest is what MindFormers' predict_llama2_7b.yaml has; its kernels rotate in the dtype of the queries.
    """
    settings |= {
        "use_past": True,
        "is_dynamic": True,
        "use_flash_attention": True,
        "rotary_dtype": settings["compute_dtype"],
        "block_size": BLOCK_SIZE,
        "num_blocks": num_blocks,
    }


def put_on_paged_context(settings: dict[str, Any]) -> None:
    """Have an NPU compile its graphs as MindFormers does for prediction, where these kernels are found."""
    if settings["device_target"] == "Ascend":
        settings["jit_config"] = {"jit_level": "O0", "infer_boost": "on"}


def blocks_for(tokens: int) -> int:
    """Blocks of one text."""
    return -(-tokens // BLOCK_SIZE)


class PagedBatch:
    """Prompts, then a token for every row at each step, through MindFormers' `forward`.

    Each row has blocks of its own for the longest text there can be, side by side, so none is ever handed out anew.

    Args:
        network: LlamaForCausalLM of `put_on_paged_settings`, in evaluation mode.
        pad_token_id: stands behind prompts.
        positions: most tokens of a text.
    """

    def __init__(self, network: nn.Cell, pad_token_id: int, positions: int) -> None:
        network.set_dynamic_inputs()
        network.predict_run_mode = True  # logits alone, as MindFormers' own run_mode: predict has them
        self._network = network
        self._pad_token_id = pad_token_id
        self._lengths = RowLengths(positions)
        self._tables = np.zeros((0, 0), np.int32)  # numbers of each row's blocks, [rows, blocks]

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> NDArray[np.float32]:
        """Begin a batch; logits after the last token of each prompt, float32 [prompts, vocabulary].

        Raises:
            UserError: if the longest prompt and its new tokens go beyond the model's positions.
        """
        blocks = blocks_for(self._lengths.start(prompts, max_new_tokens))
        self._tables = np.arange(len(prompts) * blocks, dtype=np.int32).reshape(len(prompts), blocks)
        return self.replace(range(len(prompts)), prompts)

    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Put prompts at the places of rows that ended; logits after each, float32 [prompts, vocabulary].

        Raises:
            ValueError: for a prompt that is longer than those of `start`, which the cache has no room for.
        """
        self._lengths.put(places, prompts, self._tables.shape[1] * BLOCK_SIZE)
        rows = list(places)
        longest = max(map(len, prompts))
        ids = np.full((len(rows), longest), self._pad_token_id, np.int32)
        slots = np.full((len(rows), longest), -1, np.int32)  # -1: a pad, which MindFormers takes out
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            ids[number, : len(prompt)] = prompt
            slots[number, : len(prompt)] = self._tables[row, 0] * BLOCK_SIZE + np.arange(len(prompt))
        return self._forward(ids, rows, slots.reshape(-1), prefill=True)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to every row; logits after it, float32 [prompts, vocabulary].

        A row that has had all its new tokens stays as long as it is, and its logits mean nothing.
        """
        slots = self._tables[:, 0] * BLOCK_SIZE + self._lengths.grow()
        rows = list(range(len(tokens)))
        return self._forward(tokens.astype(np.int32)[:, None], rows, slots, prefill=False)

    def _forward(
        self, ids: NDArray[np.int32], rows: list[int], slots: NDArray[np.int32], *, prefill: bool
    ) -> NDArray[np.float32]:
        prompts = {"origin_inputs": ids} if prefill else {}
        logits, _ = self._network.forward(
            ids,
            self._lengths.now[rows],
            block_tables=self._tables[rows],
            slot_mapping=slots.astype(np.int32),
            prefill=prefill,
            use_past=True,
            **prompts,
        )
        array: NDArray[np.float32] = ms.Tensor(logits).asnumpy()
        return array
