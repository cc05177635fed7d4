"""The configuration of our Phi network, in the words of MindFormers' LlamaConfig where it has them."""

from typing import Any

from mindformers.models.configuration_utils import PretrainedConfig
from mindformers.models.utils import convert_mstype
from mindformers.modules.transformer import TransformerOpParallelConfig
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PhiConfig(PretrainedConfig):  # type: ignore[misc]  # mindformers ships no types
    """Sizes, dtypes and kernels of PhiForCausalLM.

    Args:
        batch_size: rows of a micro-batch.
        seq_length: tokens of a row, without the last one, which is only a target.
        vocab_size: of the embedding and the head.
        hidden_size: of the residual stream.
        intermediate_size: of the MLP.
        num_layers: decoder layers.
        num_heads: of the queries.
        n_kv_heads: of keys and values, a divisor of num_heads.
        rotary_size: how many numbers of each head are rotated, an even number.
        theta: base of the rotary embedding.
        max_position_embedding: rows of its tables.
        layer_norm_eps: added to the variance.
        bos_token_id: for MindFormers' own generation.
        eos_token_id: for MindFormers' own generation.
        pad_token_id: hidden as a key wherever it stands, as in MindFormers' networks.
        ignore_token_id: label of tokens that are not trained.
        compute_dtype: of linear layers and attention, a name such as `float32`.
        param_init_type: of the weights.
        layernorm_compute_type: of the norms.
        softmax_compute_type: of the attention's softmax.
        rotary_dtype: of the rotary embedding.
        use_flash_attention: the NPU's kernel.
        use_eod_attn_mask_compression: its borders of packed conversations.
        calculate_per_token_loss: give loss sum and trained tokens in place of their quotient.
        parallel_config: set by MindFormers' Trainer, recomputation with it.
        checkpoint_name_or_path: weights to load at once; none as a rule, as the Trainer loads them.
        offset: layers more or fewer of a pipeline stage.
        kwargs: what PretrainedConfig reads.
    """

    model_type = "phi"

    def __init__(
        self,
        *,
        batch_size: int,
        seq_length: int,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        num_heads: int,
        n_kv_heads: int,
        rotary_size: int,
        theta: float,
        max_position_embedding: int,
        layer_norm_eps: float,
        bos_token_id: int | None,
        eos_token_id: int | list[int] | None,
        pad_token_id: int,
        ignore_token_id: int,
        compute_dtype: str,
        param_init_type: str,
        layernorm_compute_type: str,
        softmax_compute_type: str,
        rotary_dtype: str,
        use_flash_attention: bool,
        use_eod_attn_mask_compression: bool = False,
        calculate_per_token_loss: bool = False,
        parallel_config: Any = None,
        checkpoint_name_or_path: str = "",
        offset: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            checkpoint_name_or_path=checkpoint_name_or_path,
            **kwargs,
        )
        self.batch_size = batch_size
        self.seq_length = seq_length
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.n_kv_heads = n_kv_heads
        self.rotary_size = rotary_size
        self.theta = theta
        self.max_position_embedding = max_position_embedding
        self.layer_norm_eps = layer_norm_eps
        self.ignore_token_id = ignore_token_id
        self.compute_dtype = convert_mstype(compute_dtype)
        self.param_init_type = convert_mstype(param_init_type)
        self.layernorm_compute_type = convert_mstype(layernorm_compute_type)
        self.softmax_compute_type = convert_mstype(softmax_compute_type)
        self.rotary_dtype = convert_mstype(rotary_dtype)
        self.use_flash_attention = use_flash_attention
        self.use_eod_attn_mask_compression = use_eod_attn_mask_compression
        self.calculate_per_token_loss = calculate_per_token_loss
        if isinstance(parallel_config, dict):
            parallel_config = TransformerOpParallelConfig(**parallel_config)
        self.parallel_config = parallel_config or TransformerOpParallelConfig()
        self.offset = offset
