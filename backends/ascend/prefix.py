"""Prefix tuning for MindFormers' LlamaForCausalLM, as PEFT computes it, in MindFormers' registry.

MindFormers' own ptuning2 is another job: its prefix is float16, the first token's rotary position is 0 where
PEFT's is the number of virtual tokens, and grouped keys do not fit. Its network takes a prefix all the same.
"""

from typing import Any

import mindspore as ms
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from twintune.backends.job import PrefixTuning
from twintune.converters.prefix_adapter import keys_and_values


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PrefixLlamaConfig(LlamaConfig):  # type: ignore[misc]  # mindformers ships no types
    """LlamaConfig with the sizes of a prefix; encoder_hidden_size 0 trains keys and values as they are."""

    def __init__(self, num_virtual_tokens: int = 1, encoder_hidden_size: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_virtual_tokens = num_virtual_tokens
        self.encoder_hidden_size = encoder_hidden_size


class KeysAndValues(nn.Cell):  # type: ignore[misc]  # mindspore ships no types
    """PEFT's PrefixEncoder, its parameters in float32."""

    def __init__(self, prefix: PrefixTuning) -> None:
        super().__init__()
        self.shape = (prefix.num_virtual_tokens, prefix.num_layers * 2, prefix.token_dim)
        hidden, width = prefix.encoder_hidden_size, keys_and_values(prefix)
        self.projected = hidden is not None
        self.embedding = _parameter("embedding", prefix.num_virtual_tokens, prefix.token_dim if hidden else width)
        if hidden is not None:
            self.weight_in = _parameter("weight_in", hidden, prefix.token_dim)
            self.bias_in = _parameter("bias_in", hidden)
            self.weight_out = _parameter("weight_out", width, hidden)
            self.bias_out = _parameter("bias_out", width)

    def construct(self, rows: int) -> tuple[ms.Tensor, ...]:
        """For each layer keys and values, float32 [2, rows, virtual tokens, token_dim]."""
        made = self.embedding
        if self.projected:
            hidden = ops.tanh(ops.matmul(made, ops.transpose(self.weight_in, (1, 0))) + self.bias_in)
            made = ops.matmul(hidden, ops.transpose(self.weight_out, (1, 0))) + self.bias_out
        every_row = ops.tile(ops.reshape(made, (1, *self.shape)), (rows, 1, 1, 1))
        by_layer: tuple[ms.Tensor, ...] = ops.split(ops.transpose(every_row, (2, 0, 1, 3)), 2, axis=0)
        return by_layer


def _parameter(name: str, *shape: int) -> ms.Parameter:
    return ms.Parameter(initializer("zeros", shape, ms.float32), name=name)


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PrefixLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]  # mindformers ships no types
    """LlamaForCausalLM, frozen, behind a trained prefix."""

    def __init__(self, config: PrefixLlamaConfig) -> None:
        super().__init__(config)
        for parameter in self.get_parameters():
            parameter.requires_grad = False
        heads = config.n_kv_heads or config.num_heads
        self.prefix = KeysAndValues(
            PrefixTuning(
                config.num_virtual_tokens,
                config.encoder_hidden_size or None,
                config.num_layers,
                heads,
                heads * (config.hidden_size // config.num_heads),
            )
        )
        tables = self.model.freqs_mgr  # its first row is for the first token, which stands behind the prefix
        tables.freqs_cos = tables.freqs_cos[config.num_virtual_tokens :]
        tables.freqs_sin = tables.freqs_sin[config.num_virtual_tokens :]

    def construct(
        self,
        input_ids: ms.Tensor,
        labels: ms.Tensor | None = None,
        batch_valid_length: ms.Tensor | None = None,
    ) -> Any:
        """As LlamaForCausalLM, int32 [rows, length]."""
        return super().construct(
            input_ids,
            labels,
            batch_valid_length=batch_valid_length,
            prefix_keys_values=self.prefix(input_ids.shape[0]),
        )
