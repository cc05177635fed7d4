"""P-tuning v2 on PyTorch equals PEFT's prefix tuning: losses, trained numbers, logits and texts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

import torch
from transformers import AutoModelForCausalLM

from tests.jobs import Recorder, make_job, random_rows, write_rows
from tests.tiny_models import save_tiny_model
from twintune.adapter_plan import seam_prefix
from twintune.backends.cuda import CudaBackend
from twintune.backends.job import TrainJob
from twintune.converters.adapter import read_any_adapter
from twintune.converters.prefix_adapter import PROMPT
from twintune.errors import UserError
from twintune.generation import TextGenerator
from twintune.models import read_model_config
from twintune.recipe_sections import PtuningV2Section
from twintune.sampling import Sampling

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS, HALF = 6, 3
PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 99], [1, 7, 7, 120, 33]]


class Numbers:
    """A decoder whose text is the ids."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Trained(NamedTuple):
    """A job and what was logged of it."""

    job: TrainJob
    log: Recorder


@pytest.fixture(
    scope="module",
    params=[("llama", None), ("qwen2", 12), ("mistral", None), ("phi", 12)],
    ids=["llama", "qwen2-projected", "mistral", "phi-projected"],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    family, hidden = request.param
    folder = tmp_path_factory.mktemp(family)
    model = save_tiny_model(folder / "model", family)
    section = PtuningV2Section(num_virtual_tokens=5, prefix_projection=hidden is not None, encoder_hidden_size=hidden)
    prefix = seam_prefix(section, read_model_config(model))
    write_rows(folder / "rows", random_rows()[:6], "validation")
    settings: dict[str, Any] = {"evaluation_steps": (HALF,), "checkpoint_steps": (HALF,), "evaluation_batch": 4}
    job = make_job(folder, model=model, accumulation=2, steps=STEPS, adapter=prefix, **settings)
    log = Recorder()
    CudaBackend().train(job, log)
    return Trained(job, log)


def peft_network(job: TrainJob) -> Any:
    """PEFT's own, with the job's initial numbers."""
    from peft import PrefixTuningConfig, get_peft_model

    prefix, tensors = read_any_adapter(job.initial_adapter, to_train=True)
    hidden = prefix.encoder_hidden_size  # type: ignore[union-attr]  # a prefix it is
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=hidden is not None, encoder_hidden_size=hidden
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(job.model), config)
    state = {name.removeprefix("prompt_encoder."): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    model.prompt_encoder["default"].load_state_dict(state)
    return model


def losses_of_peft(job: TrainJob) -> list[float]:
    """A plain loop over PEFT's own forward, the micro-batches of a step as one batch."""
    model = peft_network(job).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    rates = CudaBackend().learning_rates(job)
    losses = []
    for numbers, rate in zip(job.order, rates, strict=True):
        rows = [random_rows()[number] for number in numbers.ravel()]
        length = max(len(ids) for ids, _ in rows)
        loss = model(
            input_ids=torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows]),
            attention_mask=torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
            labels=torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.optimizer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def loaded_by_peft(job: TrainJob) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job.model), job.output_dir / "adapter").eval()


def ours(job: TrainJob, adapter: str = "adapter") -> Any:
    return CudaBackend().load_model(job.model, job.output_dir / adapter, pad_token_id=0, device="cpu", dtype="float32")


def test_losses_are_those_of_pefts_own_forward(trained: Trained) -> None:
    expected = losses_of_peft(trained.job)
    losses = [step.loss for step in trained.log.steps]
    np.testing.assert_allclose(losses[0], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)  # after six updates of Adam
    assert len(set(losses)) == STEPS


def test_the_adapter_is_loaded_by_peft_and_gives_the_same_logits(trained: Trained) -> None:
    theirs = loaded_by_peft(trained.job)
    for prompt, logits in zip(PROMPTS, ours(trained.job).logits(PROMPTS), strict=True):
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)  # batched and padded against alone


# peft 0.18 leaves transformers' positions out, and counts them itself
@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning")
def test_greedy_texts_are_those_of_pefts_generate(trained: Trained) -> None:
    theirs = loaded_by_peft(trained.job)
    ids = TextGenerator(ours(trained.job), Numbers(), [2], batch_size=2).generate_ids(PROMPTS, Sampling(12))
    for prompt, text in zip(PROMPTS, ids, strict=True):
        given = torch.tensor([prompt])
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        whole = theirs.generate(input_ids=given, attention_mask=torch.ones_like(given), **options)[0].tolist()
        expected = whole[len(prompt) :]
        assert text == expected[: expected.index(2) if 2 in expected else None]


def test_only_the_prefix_is_trained_and_the_checkpoint_has_it(trained: Trained) -> None:
    job = trained.job
    before, half, after = (
        read_any_adapter(folder, to_train=True)[1]
        for folder in (job.initial_adapter, job.checkpoint(HALF), job.output_dir / "adapter")
    )
    assert before.keys() == half.keys() == after.keys()
    assert all(not np.array_equal(before[name], half[name]) for name in before)
    assert all(not np.array_equal(half[name], after[name]) for name in before)


def test_a_resumed_run_goes_on_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    job = trained.job
    rest = replace(job, output_dir=tmp_path / "rest", resume_from=job.checkpoint(HALF), steps_done=HALF)
    log = Recorder()
    CudaBackend().train(rest, log)
    assert [(step.loss, step.grad_norm) for step in log.steps] == [
        (step.loss, step.grad_norm) for step in trained.log.steps[HALF:]
    ]


def test_the_evaluation_is_the_loss_with_the_prefix(trained: Trained) -> None:
    rows = [(ids, np.array(labels[1:])) for ids, labels in random_rows()[:6]]
    network = ours(trained.job, f"checkpoint-{HALF}")
    total, tokens = 0.0, 0
    for (_, labels), logits in zip(rows, network.logits([ids for ids, _ in rows]), strict=True):
        scores = logits[:-1].astype(np.float64)
        places = labels != -100
        chosen = scores[places, labels[places]]
        total += float((np.log(np.exp(scores[places]).sum(axis=1)) - chosen).sum())
        tokens += int(places.sum())
    (evaluation,) = trained.log.evaluations
    assert evaluation.tokens == tokens
    assert abs(evaluation.loss - total / tokens) < 1e-5


def test_a_text_beyond_the_positions_that_the_prefix_leaves_is_refused(trained: Trained) -> None:
    model = ours(trained.job)
    with pytest.raises(UserError, match=r"must fit the model's 123 positions, got 20 prompt tokens and 104 new ones"):
        model.start([list(range(3, 23))], 104)  # the model has 128
    model.start([list(range(3, 23))], 103)


def test_the_file_is_pefts_own(trained: Trained) -> None:
    from safetensors.numpy import load_file

    adapter = trained.job.output_dir / "adapter"
    assert load_file(adapter / "adapter_model.safetensors").keys() == {PROMPT}
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
