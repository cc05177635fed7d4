"""A merged model is the adapter's, or it is not kept."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the cuda extra is not installed: it merges too, to compare with")

from tests.smallest_recipe import write_smallest_recipe
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune import merge_check, merging
from twintune.backends import missing_packages
from twintune.backends.job import Lora
from twintune.converters.adapter import make_initial_adapter, read_adapter, write_adapter
from twintune.converters.adapter_settings import CONFIG
from twintune.converters.merged_weights import merged_weights
from twintune.converters.tokens import load_tokenizer
from twintune.converters.weights import read_weights
from twintune.errors import UserError
from twintune.merging import MERGE, merge_adapter
from twintune.models import read_model_config
from twintune.recipe import load_recipe

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = Lora(4, 10.0, 0.1, ("q_proj", "v_proj", "down_proj"))
IDS = [[1, 5, 90, 200, 3, 17, 44, 301]]


def save_base(folder: Path, family: str, **changes: Any) -> Path:
    save_tiny_model(folder, family, vocab_size=400, **changes)
    return save_chatml_tokenizer(folder)


def save_adapter(folder: Path, base: Path, lora: Lora = LORA) -> Path:
    """An adapter whose B is not zero."""
    draw = np.random.default_rng(1)
    initial = make_initial_adapter(read_model_config(base), lora, seed=0)
    tensors = {name: (draw.normal(size=one.shape) * 0.1).astype(np.float32) for name, one in initial.items()}
    write_adapter(folder, tensors, lora, str(base))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("llama") / "base", "llama")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return save_adapter(base.parent / "adapter", base)


def logits_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.inference_mode():
        return model(torch.tensor(IDS)).logits


def logits_by_peft(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    with torch.inference_mode():
        return model(torch.tensor(IDS)).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "phi"])
def test_the_merged_model_is_pefts(tmp_path: Path, family: str) -> None:
    base = save_base(tmp_path / "base", family, initializer_range=0.05)
    lora = replace(LORA, target_modules=("q_proj", "dense", "fc2")) if family == "phi" else LORA
    adapter = save_adapter(tmp_path / "adapter", base, lora)
    done = merge_adapter(adapter, tmp_path / "merged", backend="cuda", device="cpu")
    torch.testing.assert_close(logits_of(tmp_path / "merged"), logits_by_peft(base, adapter), atol=1e-6, rtol=0)
    assert done.layers == 6
    assert done.check.largest_difference < 1e-5
    assert done.check.adapter_effect > 0.1
    assert done.check.same_texts == done.check.texts == 4
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits_of(base), logits_by_peft(base, adapter), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_shards_are_whole(tmp_path: Path, tied: bool) -> None:
    base = save_base(tmp_path / "base", "qwen2", tie_word_embeddings=tied)
    adapter = save_adapter(tmp_path / "adapter", base)
    done = merge_adapter(adapter, tmp_path / "merged", backend="cuda", device="cpu", max_shard_size="150KB")
    assert len(done.files) > 2
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    torch.testing.assert_close(logits_of(tmp_path / "merged"), logits_by_peft(base, adapter), atol=1e-5, rtol=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_are_rounded_once(tmp_path: Path, base: Path, adapter: Path, dtype: str) -> None:
    from transformers import AutoConfig

    done = merge_adapter(adapter, tmp_path / "merged", dtype=dtype, backend="cuda", device="cpu")
    config = read_model_config(base)
    _, tensors = read_adapter(adapter)
    merged = dict(read_weights(tmp_path / "merged", config))
    for name, weight in read_weights(base, config):
        matrices = f"base_model.model.{name.removesuffix('weight')}"
        wanted = torch.from_numpy(weight)
        if f"{matrices}lora_A.weight" in tensors:
            a, b = (torch.from_numpy(tensors[f"{matrices}lora_{one}.weight"]) for one in "AB")
            wanted = wanted + 2.5 * (b @ a)  # 10 / 4
        rounded = wanted.to(getattr(torch, dtype)).float()
        # torch adds up in another order: a sum that lies between two numbers may go either way
        unlike = (rounded.numpy() != merged[name]).mean()
        assert unlike < 1e-3, name
        np.testing.assert_allclose(merged[name], rounded.numpy(), rtol=merge_check.EPS[dtype])
    assert AutoConfig.from_pretrained(tmp_path / "merged").dtype == getattr(torch, dtype)
    assert done.check.largest_difference > 1e-4  # so the limit of float32 would not do
    assert done.check.mean_difference <= done.check.mean_tolerance


def test_figures_lie_beside_the_weights(tmp_path: Path, base: Path, adapter: Path) -> None:
    done = merge_adapter(adapter, tmp_path / "merged", backend="cuda", device="cpu")
    written = json.loads((tmp_path / "merged" / MERGE).read_text())
    assert written["check"]["largest_difference"] == done.check.largest_difference
    assert (written["dtype"], written["backend"], written["device"]) == ("float32", "cuda", "cpu")
    assert written["lora"]["r"] == 4
    assert str(base.parent) not in json.dumps(written)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("fault", ["scaling 1", "half the scaling", "swapped layers", "one layer left out"])
def test_a_wrong_merge_is_noticed_and_nothing_is_left(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fault: str
) -> None:
    honest = merged_weights

    def faulty(base: Any, lora: Lora, tensors: dict[str, Any], dtype: str) -> Iterator[tuple[str, Any]]:
        if fault == "scaling 1":
            lora = replace(lora, lora_alpha=lora.r)
        elif fault == "half the scaling":
            lora = replace(lora, lora_alpha=lora.lora_alpha / 2)
        elif fault == "swapped layers":
            other = {"0": "1", "1": "0"}
            tensors = {f"{name[:30]}{other[name[30]]}{name[31:]}": one for name, one in tensors.items()}
        else:
            tensors = {name: one for name, one in tensors.items() if ".layers.1.self_attn.v_proj." not in name}
        return honest(base, lora, tensors, dtype)

    monkeypatch.setattr(merging, "merged_weights", faulty)
    with pytest.raises(UserError, match=r"logits of the merged model must be within .*; nothing was kept"):
        merge_adapter(adapter, tmp_path / "merged", dtype=dtype, backend="cuda", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_adapters_that_peft_made_merge_as_peft_does(tmp_path: Path, base: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(
        r=6,
        lora_alpha=4,
        target_modules=r".*\.(q_proj|gate_proj)",
        use_rslora=True,
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    model.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", model=str(base), backend="cuda", device="cpu")
    torch.testing.assert_close(
        logits_of(tmp_path / "merged"), logits_by_peft(base, tmp_path / "adapter"), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"modules_to_save": ["score"]}, "modules_to_save must be a list of embed_tokens, lm_head"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern must be {}"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern must be {}"),
        ({"use_dora": True}, "use_dora must be False"),
        ({"r": 8}, r"lora_A.weight must be \[8, 64\], got \[4, 64\]"),
        ({"target_modules": ["q_proj", "v_proj"]}, "down_proj.lora_A.weight must not be there"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, base: Path, keys: dict[str, Any], sentence: str) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    settings = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(settings | keys))
    with pytest.raises(UserError, match=sentence):
        merge_adapter(adapter, tmp_path / "merged", backend="cuda", device="cpu")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "int8"}, "--dtype must be one of float32, float16, bfloat16, got 'int8'"),
        ({"max_shard_size": "many"}, "--max-shard-size must be a size"),
        ({"model": "/nowhere"}, "model.name_or_path must be a folder"),
    ],
)
def test_wrong_flags_are_told(tmp_path: Path, adapter: Path, arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        merge_adapter(adapter, tmp_path / "merged", **arguments)


def test_a_weight_that_float16_cannot_hold_is_told(tmp_path: Path, base: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, replace(LORA, lora_alpha=1e7))
    with pytest.raises(UserError, match=r"must fit into float16, but .* is too large for float16; use another --dtype"):
        merge_adapter(adapter, tmp_path / "merged", dtype="float16", backend="cuda", device="cpu")
    assert not (tmp_path / "merged").exists()


def test_questions_are_rendered_as_the_recipe_does(tmp_path: Path) -> None:
    recipe = load_recipe(write_smallest_recipe(tmp_path), ["data.system=Be brief."])
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "tiny-llama")
    recipe.save(adapter / "recipe.yaml")
    done = merge_adapter(adapter, tmp_path / "merged", backend="cuda", device="cpu")
    assert done.choices["questions"].value == "vicuna_v1.1"
    assert done.choices["model"].reason == "from the adapter's recipe.yaml"
    tokenizer = load_tokenizer(tmp_path / "tiny-llama")
    first = merge_check.render_questions(recipe, tokenizer).prompts[0]
    assert tokenizer.decode(first) == f"Be brief. USER: {merge_check.QUESTIONS[0]} ASSISTANT:"


@pytest.mark.slow  # three networks, five graphs
@pytest.mark.skipif(bool(missing_packages("ascend")), reason="the ascend extra is not installed")
def test_mindformers_checks_a_merge_too(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", num_hidden_layers=1)
    adapter = save_adapter(tmp_path / "adapter", base)
    done = merge_adapter(adapter, tmp_path / "merged", backend="ascend", device="cpu")
    assert done.choices["checked on"].value == "ascend"
    assert 0 < done.check.largest_difference < 2e-4  # two sums of float32 in another order
    assert done.check.adapter_effect > 0.1
    assert done.check.same_texts == 4
