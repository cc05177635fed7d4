"""FLOPs by formula, against PyTorch's own counter where it is installed."""

from typing import Any

import pytest

from twintune.backends.job import Lora, PrefixTuning
from twintune.throughput import Work, step_flops

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 80
NONE = PrefixTuning(0, None, 3, 2, 16)


def test_a_frozen_weight_has_four_flops_a_token_and_the_head_as_many_a_trained_one() -> None:
    assert step_flops(CONFIG, NONE, Work(10, 0, 0)) == 4 * 3 * LAYER * 10
    assert step_flops(CONFIG, NONE, Work(0, 0, 7)) == 4 * 96 * 32 * 7


def test_a_lora_matrix_has_six_and_a_trained_head() -> None:
    lora = Lora(4, 8, 0.0, ("q_proj", "down_proj"))
    matrices = 3 * 4 * (32 + 32 + 80 + 32)
    assert step_flops(CONFIG, lora, Work(10, 0, 0)) == (4 * 3 * LAYER + 6 * matrices) * 10
    whole = Lora(4, 8, 0.0, ("q_proj", "down_proj"), ("lm_head",))
    assert step_flops(CONFIG, whole, Work(0, 0, 7)) == 6 * 96 * 32 * 7


def test_recomputing_adds_the_layers_forward_alone() -> None:
    work = Work(10, 55, 7)
    forward = 2 * 3 * LAYER * 10 + 4 * 3 * 32 * 55
    assert step_flops(CONFIG, NONE, work, recomputed=True) - step_flops(CONFIG, NONE, work) == forward


def test_tokens_see_a_prefix_too() -> None:
    prefix = PrefixTuning(5, None, 3, 2, 16)
    more = step_flops(CONFIG, prefix, Work(10, 55, 7)) - step_flops(CONFIG, NONE, Work(10, 55, 7))
    assert more == 12 * 3 * 32 * 10 * 5


def test_pytorch_counts_the_same() -> None:
    torch = pytest.importorskip("torch", reason="its counter of FLOPs")
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.LlamaConfig(**CONFIG)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.requires_grad_(False)
    embedded = torch.randn(1, 24, 32, requires_grad=True)
    positions = torch.arange(24)[None]
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, position_ids=positions, use_cache=False).logits.sum().backward()
    expected = step_flops(CONFIG, NONE, Work(24, 24 * 24, 24))  # eager attention computes what it then masks
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-4)  # rotary angles are a product too
