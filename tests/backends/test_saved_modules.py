"""Added tokens, resized embeddings and whole modules beside LoRA: the same job on both backends, in PEFT's files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the cuda extra is not installed: its run is what the other must equal")

from tests.jobs import Recorder, make_job, random_rows, write_rows
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.backends import Name, load_backend, missing_packages
from twintune.backends.job import Lora, TrainJob
from twintune.converters.adapter import WEIGHTS, read_adapter
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError
from twintune.generation import TextGenerator
from twintune.merging import merge_adapter
from twintune.models import read_model_config
from twintune.parity.probe_adapters import with_random_b
from twintune.recipe_sections import ModelSection
from twintune.resizing import trained_model
from twintune.sampling import Sampling

needs_mindspore = pytest.mark.skipif(bool(missing_packages("ascend")), reason="the ascend extra is not installed")
pytestmark = [
    # peft 0.21 asks transformers 5 for gradient checkpointing by its old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft 0.18 takes every architecture that can be tied for tied
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
TARGETS = {"llama": ("q_proj", "down_proj"), "phi": ("q_proj", "dense", "fc2")}
ADDED = ("<|user|>", "<|bot|>")
FIRST_ADDED = 400  # the tokenizer's own ids are below
ROWS = 448  # 402 tokens, rounded up to a multiple of 64
STEPS = 12
RESUMED = 10
PREFIX = "base_model.model."
EMBEDDING, HEAD = f"{PREFIX}model.embed_tokens.weight", f"{PREFIX}lm_head.weight"
PROMPTS = [[400, 7, 90, 401], [400, 33, 401]]


@dataclass
class Trained:
    """One job, trained on every backend that is installed."""

    job: TrainJob
    recorders: dict[Name, Recorder]

    def adapter(self, name: Name) -> Path:
        return self.job.output_dir / name / "adapter"

    def tensors(self, name: Name) -> dict[str, NDArray[np.float32]]:
        return read_adapter(self.adapter(name))[1]


def rows_with_added_tokens() -> list[tuple[list[int], list[int]]]:
    """Each row opens with both added tokens and ends with the second, which is trained there."""
    first, second = FIRST_ADDED, FIRST_ADDED + 1
    return [([first, second, *ids[:21], second], [-100, -100, *labels[:21], second]) for ids, labels in random_rows()]


def train(folder: Path, family: str) -> Trained:
    model = save_chatml_tokenizer(
        save_tiny_model(folder / "model", family, vocab_size=FIRST_ADDED, num_hidden_layers=1)
    )
    section = ModelSection(name_or_path=str(model), added_tokens=ADDED, pad_to_multiple_of=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINTUNE_CACHE", str(folder / "cache"))
        resized = trained_model(section)
    lora = Lora(4, 8, 0.0, TARGETS[family], ("lm_head", "embed_tokens"))
    rows = write_rows(folder / "rows", rows_with_added_tokens())
    job = make_job(folder, family, 2, STEPS, model=resized, lora=lora, rows=rows, checkpoint_steps=(RESUMED,))
    recorders = {}
    names: tuple[Name, ...] = ("cuda", "ascend")
    for name in names:
        if missing_packages(name):
            continue
        run = replace(job, output_dir=job.output_dir / name)
        run.output_dir.mkdir(parents=True)
        recorders[name] = Recorder()
        load_backend(name).train(run, recorders[name])
    return Trained(job, recorders)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("phi"), "phi")


@pytest.fixture(params=["llama", "phi"])
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


@needs_mindspore
def test_both_backends_train_the_same_job(trained: Trained) -> None:
    cuda, ascend = (trained.recorders[name].steps for name in ("cuda", "ascend"))
    np.testing.assert_allclose([step.loss for step in ascend], [step.loss for step in cuda], rtol=0, atol=1e-5)
    norms = [step.grad_norm for step in cuda]
    np.testing.assert_allclose([step.grad_norm for step in ascend], norms, rtol=1e-4)
    assert cuda[-1].loss < cuda[0].loss
    one, other = trained.tensors("cuda"), trained.tensors("ascend")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(other[name], tensor, rtol=0, atol=1e-4, err_msg=name)


@needs_mindspore
def test_both_backends_write_the_same_file_but_for_its_numbers(trained: Trained) -> None:
    headers = []
    for name in trained.recorders:
        with (trained.adapter(name) / WEIGHTS).open("rb") as stream:
            headers.append(stream.read(int.from_bytes(stream.read(8), "little")))
    assert headers[0] == headers[1]


def test_the_rows_of_the_added_tokens_are_trained(trained: Trained) -> None:
    _, initial = read_adapter(trained.job.initial_adapter)
    for name in trained.recorders:
        final = trained.tensors(name)
        assert final[EMBEDDING].shape == final[HEAD].shape == (ROWS, 64)
        moved = np.abs(final[EMBEDDING] - initial[EMBEDDING]).max(axis=1)
        assert moved[FIRST_ADDED : FIRST_ADDED + 2].min() > 0.01
        # No row has these ids: there is no gradient, and weight decay alone shrinks them.
        shrunk = final[EMBEDDING][FIRST_ADDED + 2 :] / initial[EMBEDDING][FIRST_ADDED + 2 :]
        np.testing.assert_allclose(shrunk, shrunk[0, 0], rtol=1e-4)


@pytest.mark.parametrize("name", ["cuda", pytest.param("ascend", marks=needs_mindspore)])
def test_a_resumed_run_equals_the_unbroken_one(phi: Trained, tmp_path: Path, name: Name) -> None:
    checkpoint = phi.job.output_dir / name / f"checkpoint-{RESUMED}"
    job = replace(phi.job, output_dir=tmp_path, resume_from=checkpoint, steps_done=RESUMED, checkpoint_steps=())
    recorder = Recorder()
    load_backend(name).train(job, recorder)
    unbroken = phi.recorders[name].steps[RESUMED:]
    assert [step.loss for step in recorder.steps] == [step.loss for step in unbroken]
    _, tensors = read_adapter(tmp_path / "adapter")
    for key, tensor in phi.tensors(name).items():
        np.testing.assert_array_equal(tensors[key], tensor, err_msg=key)


def peft_logits(trained: Trained, rows: list[list[int]]) -> list[Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(trained.job.model)
    model = PeftModel.from_pretrained(base, trained.adapter("cuda"))
    with torch.inference_mode():
        return [model(torch.tensor([row])).logits[0].numpy() for row in rows]


def test_plain_peft_loads_it_and_computes_the_same(trained: Trained) -> None:
    loaded = load_backend("cuda").load_model(
        trained.job.model, trained.adapter("cuda"), pad_token_id=0, device="cpu", dtype="float32"
    )
    for ours, theirs in zip(loaded.logits(PROMPTS), peft_logits(trained, PROMPTS), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_merged_it_is_a_plain_model(trained: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = merge_adapter(trained.adapter("cuda"), tmp_path / "merged", backend="cuda", device="cpu")
    assert done.check.largest_difference < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert read_model_config(tmp_path / "merged")["vocab_size"] == ROWS
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids(list(ADDED)) == [400, 401]
    head = trained.tensors("cuda")[HEAD]
    np.testing.assert_array_equal(merged.get_output_embeddings().weight.detach().numpy(), head)
    with torch.inference_mode():
        for row, wanted in zip(PROMPTS, peft_logits(trained, PROMPTS), strict=True):
            np.testing.assert_allclose(merged(torch.tensor([row])).logits[0].numpy(), wanted, rtol=0, atol=1e-4)


@needs_mindspore
def test_gradients_of_whole_modules_agree(llama: Trained) -> None:
    steps = {}
    for name in llama.recorders:
        probe = load_backend(name).open_probe(llama.job)
        assert set(probe.adapter()) == set(llama.tensors("cuda"))
        probe.put_adapter(with_random_b(llama.tensors("cuda"), seed=0))
        steps[name] = probe.gradients(llama.job.order[0]).gradients
    for key, wanted in steps["cuda"].items():
        limit = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(steps["ascend"][key], wanted, rtol=0, atol=limit, err_msg=key)
    assert not steps["ascend"][EMBEDDING][FIRST_ADDED + 2 :].any()


@needs_mindspore
def test_half_precision_is_refused_where_mindformers_would_train_in_it(llama: Trained) -> None:
    with pytest.raises(UserError, match=r"backend\.dtype must be float32 for lora\.modules_to_save .*, got float16"):
        load_backend("ascend").plan(replace(llama.job, dtype="float16"))


def test_bfloat16_trains_whole_modules_in_float32(llama: Trained, tmp_path: Path) -> None:
    job = replace(llama.job, dtype="bfloat16", output_dir=tmp_path / "run")
    recorder = Recorder()
    load_backend("cuda").train(job, recorder)
    exact = llama.recorders["cuda"].steps
    # bfloat16 has 8 bits: each logit of about 5 is off by up to 0.02
    np.testing.assert_allclose([step.loss for step in recorder.steps], [step.loss for step in exact], rtol=0, atol=0.1)
    _, tensors = read_adapter(tmp_path / "run" / "adapter")
    rounded = tensors[HEAD].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (rounded != tensors[HEAD]).mean() > 0.9, "what is trained keeps float32's bits"


@needs_mindspore
def test_greedy_texts_are_the_same(llama: Trained) -> None:
    tokenizer = load_tokenizer(llama.job.model)
    texts = []
    for name in llama.recorders:
        model = load_backend(name).load_model(
            llama.job.model, llama.adapter(name), pad_token_id=0, device="cpu", dtype="float32"
        )
        generator = TextGenerator(model, tokenizer, [FIRST_ADDED + 1])
        texts.append(generator.generate_ids(PROMPTS, Sampling(max_new_tokens=12)))
    assert texts[0] == texts[1]
    assert any(texts[0])
