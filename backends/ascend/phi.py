"""Phi, Phi-1.5 and Phi-2 for MindFormers, which has none: our network in its registry, trained by its own Trainer."""

import copy
from typing import Any

import mindspore as ms
from mindformers.core.loss.loss import CrossEntropyLoss
from mindformers.models.llama.llama_layer import LlamaEmbedding
from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.modules.layers import FreqsMgr, Linear
from mindformers.modules.transformer import LowerTriangularMaskWithDynamic
from mindformers.parallel_core.training_graph.transformer.utils import LayerSetting
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import nn, ops

from twintune.backends.ascend.phi_config import PhiConfig
from twintune.backends.ascend.phi_layers import PhiDecoderLayer, layer_norm


class PhiPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # mindformers ships no types
    """What MindFormers asks of its networks beside the computation."""

    config_class = PhiConfig
    base_model_prefix = "phi"


class PhiModel(PhiPreTrainedModel):
    """Embedding, decoder layers and last norm; its stages have the names of MindFormers' LlamaModel."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config, auto_prefix=True)
        self.dtype = config.compute_dtype
        self.norm_dtype = config.layernorm_compute_type
        self.by_ends = config.use_eod_attn_mask_compression
        self.freqs_mgr = FreqsMgr(
            head_dim=config.rotary_size,
            seq_length=config.seq_length,
            max_position_embedding=config.max_position_embedding,
            rotary_dtype=config.rotary_dtype,
            theta=config.theta,
        )
        self.casual_mask = LowerTriangularMaskWithDynamic(
            seq_length=config.seq_length,
            compute_type=config.compute_dtype,
            pad_token_id=config.pad_token_id,
            use_flash_attention=True,  # 1 on hidden keys and 0 elsewhere, in uint8, as attention_mask has it
            use_attn_mask_compression=self.by_ends,
        )
        self.tok_embeddings = LlamaEmbedding(
            config.vocab_size, config.hidden_size, param_init_type=config.param_init_type
        )
        self.layers = nn.CellList()
        settings = LayerSetting(config.num_layers, config.offset, config.parallel_config)  # recomputation
        for number in range(config.num_layers):
            layer = PhiDecoderLayer(config)
            settings(layer, number)
            self.layers.append(layer)
        self.norm_out = layer_norm(config)

    def construct(
        self, tokens: ms.Tensor, attention_mask: ms.Tensor | None = None, ends: ms.Tensor | None = None
    ) -> ms.Tensor:
        """Hidden states after the last norm, [rows, length, hidden size].

        Args:
            tokens: int32 [rows, length].
            attention_mask: uint8, 1 on keys that a query may not see; None hides the future and pads.
            ends: where packed conversations end, int32.
        """
        if attention_mask is not None and not self.by_ends:
            hidden_keys = ops.cast(attention_mask, ms.uint8)
        else:
            hidden_keys = self.casual_mask(tokens)
        tables = self.freqs_mgr(tokens.shape[1])
        x = ops.cast(self.tok_embeddings(tokens), self.dtype)
        for layer in self.layers:
            x = layer(x, tables, hidden_keys, ends)
        return ops.cast(self.norm_out(ops.cast(x, self.norm_dtype)), self.dtype)


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PhiForCausalLM(PhiPreTrainedModel):
    """Phi with its head; inputs and outputs are those of MindFormers' LlamaForCausalLM."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config, auto_prefix=True)
        self.config = config
        self.pad_token_id = config.pad_token_id
        self.ignore_token_id = config.ignore_token_id
        self.model = PhiModel(config)
        self.lm_head = Linear(
            config.hidden_size,
            config.vocab_size,
            has_bias=True,
            compute_dtype=config.compute_dtype,
            param_init_type=config.param_init_type,
        )
        self.loss = CrossEntropyLoss(
            parallel_config=copy.deepcopy(config.parallel_config),
            calculate_per_token_loss=config.calculate_per_token_loss,
        )
        self.load_checkpoint(config)

    def construct(
        self,
        input_ids: ms.Tensor,
        labels: ms.Tensor | None = None,
        attention_mask: ms.Tensor | None = None,
        batch_valid_length: ms.Tensor | None = None,
        actual_seq_len: ms.Tensor | None = None,
    ) -> Any:
        """Loss in training; otherwise float32 logits [rows, length, vocabulary], the tokens, and which count.

        Args:
            input_ids: int32 [rows, length], in training one more, which is only a target.
            labels: int32, as many; ignore_token_id is not trained. None trains every token.
            attention_mask: see PhiModel.
            batch_valid_length: int32 [rows]; logits are then those after the last token alone.
            actual_seq_len: where packed conversations end, int32.
        """
        tokens = input_ids[:, :-1] if self.training else input_ids
        ends = None if actual_seq_len is None else actual_seq_len.reshape(-1)
        hidden = self.model(tokens, attention_mask, ends)
        if batch_valid_length is not None:
            hidden = ops.gather(hidden, batch_valid_length.reshape(-1) - 1, 1, 1)
        logits = ops.cast(self.lm_head(hidden), ms.float32)
        counted = ops.cast(tokens != self.pad_token_id, ms.float32)
        if not self.training:
            return logits, tokens, counted
        targets = input_ids[:, 1:] if labels is None else labels[:, 1:]
        counted = counted * ops.cast(targets != self.ignore_token_id, ms.float32)
        return self.loss(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), counted.reshape(-1))
