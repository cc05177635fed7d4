"""Tables of names by family of models, Hugging Face on the left and MindSpore on the right.

llama, qwen2 and mistral run on MindFormers' LlamaForCausalLM; phi on the network in backends/ascend/phi.py, which
takes MindFormers' names for what a LLaMA has too. So a MindSpore name tells its Hugging Face name in any family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """The modules and weights of one architecture.

    Attributes:
        modules: linear layers of a decoder layer, without `.weight` and `.bias`.
        norms: weights of a decoder layer's norms.
        top: weights outside the decoder layers.
        activation: the module of the MLP's activation.
    """

    modules: Mapping[str, str]
    norms: Mapping[str, str]
    top: Mapping[str, str]
    activation: tuple[str, str]


ATTENTION = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
}
LLAMA = Family(
    modules={
        **ATTENTION,
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    },
    norms={
        "input_layernorm.weight": "attention_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
    },
    top={
        "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
        "model.norm.weight": "model.norm_out.weight",
        "lm_head.weight": "lm_head.weight",
    },
    activation=("mlp.act_fn", "feed_forward.w1.activation"),  # MindFormers puts it at the end of w1
)
PHI = Family(
    modules={
        **ATTENTION,
        "self_attn.dense": "attention.dense",
        "mlp.fc1": "feed_forward.fc1",
        "mlp.fc2": "feed_forward.fc2",
    },
    norms={
        "input_layernorm.weight": "input_norm.gamma",
        "input_layernorm.bias": "input_norm.beta",
    },
    top={
        "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
        "model.final_layernorm.weight": "model.norm_out.gamma",
        "model.final_layernorm.bias": "model.norm_out.beta",
        "lm_head.weight": "lm_head.weight",
        "lm_head.bias": "lm_head.bias",
    },
    activation=("mlp.activation_fn", "feed_forward.activation"),
)
FAMILIES = {"llama": LLAMA, "qwen2": LLAMA, "mistral": LLAMA, "phi": PHI}
EVERY_MODULE = {**LLAMA.modules, **PHI.modules}


def family_of(config: Mapping[str, Any]) -> Family:
    """The tables of a model, by its checked config.json."""
    return FAMILIES[config["model_type"]]
