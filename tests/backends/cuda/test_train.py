"""Training by the cuda backend equals a plain loop of transformers, PEFT and torch on the big batch."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the cuda extra is not installed")
pytest.importorskip("peft", reason="the cuda extra is not installed")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_scheduler

from tests.jobs import Recorder, make_job, random_rows, write_rows
from tests.tiny_models import save_tiny_model
from twintune.backends.cuda import CudaBackend
from twintune.backends.cuda.loss import TokenLosses
from twintune.backends.cuda.model import adapter_parameters
from twintune.backends.cuda.rows import open_rows, read_micro_batches
from twintune.backends.cuda.train import backward, load_for_training
from twintune.backends.job import Lora, Optimizer, Schedule, TrainJob
from twintune.converters.adapter import read_adapter, write_adapter
from twintune.errors import UserError

# peft 0.21 asks transformers 5 for gradient checkpointing by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def run(job: TrainJob) -> tuple[Recorder, dict[str, Any]]:
    """Train; gives what was logged and the adapter."""
    recorder = Recorder()
    CudaBackend().train(job, recorder)
    return recorder, read_adapter(job.output_dir / "adapter")[1]


def reference_model(job: TrainJob) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(
        r=job.lora.r,
        lora_alpha=job.lora.lora_alpha,
        target_modules=list(job.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(job.model), config)
    set_peft_model_state_dict(model, load_file(job.initial_adapter / "adapter_model.safetensors"))
    return model


def reference_batch(numbers: Any) -> dict[str, Any]:
    rows = [random_rows()[number] for number in numbers]
    length = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
    }


def reference_run(job: TrainJob) -> tuple[list[tuple[float, float, float]], dict[str, Any]]:
    """Loss, gradient norm and learning rate by step (its micro-batches as one batch), and the adapter."""
    from peft import get_peft_model_state_dict

    model = reference_model(job).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = job.optimizer
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = job.schedule
    scheduler = get_scheduler(schedule.lr_scheduler_type, optimizer, schedule.warmup_steps, schedule.max_steps)
    log = []
    for numbers in job.order:
        batch = reference_batch(numbers.ravel())
        count = (batch["labels"][:, 1:] != -100).sum()
        loss = model(**batch, num_items_in_batch=count).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        log.append((loss.item(), norm.item(), optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return log, {name: tensor.numpy() for name, tensor in get_peft_model_state_dict(model).items()}


@pytest.mark.parametrize(
    ("family", "accumulation", "schedule"),
    [
        ("llama", 1, Schedule("cosine", 3, 20)),
        ("llama", 3, Schedule("linear", 0, 20)),
        ("qwen2", 3, Schedule("constant_with_warmup", 4, 20)),
        ("mistral", 1, Schedule("constant", 0, 20)),
    ],
)
def test_training_equals_the_plain_loop(tmp_path: Path, family: str, accumulation: int, schedule: Schedule) -> None:
    job = make_job(tmp_path, family, accumulation, schedule=schedule)
    recorder, adapter = run(job)
    log, expected = reference_run(job)
    loss, norm, rate = map(np.array, zip(*log, strict=True))
    np.testing.assert_allclose([step.loss for step in recorder.steps], loss, rtol=0, atol=1e-5)
    np.testing.assert_allclose([step.grad_norm for step in recorder.steps], norm, rtol=1e-4)
    np.testing.assert_allclose([step.learning_rate for step in recorder.steps], rate, rtol=1e-12)
    assert adapter.keys() == expected.keys()
    for name, tensor in adapter.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-4, err_msg=name)


def test_the_gradient_norm_is_clipped(tmp_path: Path) -> None:
    job = make_job(tmp_path, optimizer=Optimizer(1e-2, 0.0, 0.9, 0.999, 1e-8, max_grad_norm=0.05))
    recorder, adapter = run(job)
    log, expected = reference_run(job)
    assert min(norm for _, norm, _ in log) > 0.05  # every step is clipped
    np.testing.assert_allclose([step.grad_norm for step in recorder.steps], [step[1] for step in log], rtol=1e-3)
    for name, tensor in adapter.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-4, err_msg=name)


def test_accumulation_equals_the_big_batch(tmp_path: Path) -> None:
    job = make_job(tmp_path, accumulation=3)
    big = replace(job, order=job.order.reshape(20, 1, 6), output_dir=tmp_path / "big")
    (small_log, small), (big_log, large) = run(job), run(big)
    losses = [[step.loss for step in log.steps] for log in (small_log, big_log)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)
    assert [step.tokens for step in small_log.steps] == [step.tokens for step in big_log.steps]
    for name, tensor in small.items():
        np.testing.assert_allclose(tensor, large[name], rtol=0, atol=1e-4, err_msg=name)


def test_dropout_is_drawn_from_the_seed(tmp_path: Path) -> None:
    job = make_job(tmp_path, lora=Lora(4, 8, 0.3, ("q_proj", "v_proj")))
    (_, first), (_, again) = (run(replace(job, output_dir=tmp_path / name)) for name in ("first", "again"))
    _, other = run(replace(job, output_dir=tmp_path / "other", seed=1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 0.02), ("float16", 0.002)])  # 8 and 11 significant bits
def test_half_precision_keeps_the_adapter_in_float32(tmp_path: Path, dtype: str, rounding: float) -> None:
    job = make_job(tmp_path)
    plain, _ = run(job)
    half, _ = run(replace(job, dtype=dtype, output_dir=tmp_path / "half"))
    losses = [[step.loss for step in log.steps] for log in (plain, half)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=rounding)
    assert losses[0] != losses[1]
    tensors = load_file(tmp_path / "half/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    rounded = [torch.equal(tensor, tensor.to(getattr(torch, dtype)).float()) for tensor in tensors.values()]
    assert not any(rounded)


@pytest.mark.parametrize("times", [1, 10**6])
def test_float16_loses_no_gradient_among_many_tokens(tmp_path: Path, times: int) -> None:
    job = make_job(tmp_path, accumulation=2)
    gradients = []
    for dtype in ("float32", "float16"):
        model = load_for_training(replace(job, dtype=dtype))
        batches = read_micro_batches(job, open_rows(job.rows / "rows.arrow"), job.order[:1])
        backward(replace(job, dtype=dtype), TokenLosses(model), batches, 100 * times, job.own_places[0])
        parameters = adapter_parameters(model).values()
        gradients.append(np.concatenate([parameter.grad.numpy().ravel() for parameter in parameters]))
    plain, half = gradients
    assert np.linalg.norm(half - plain) < 0.02 * np.linalg.norm(plain)  # float16 has 11 significant bits


def test_peft_loads_the_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    job = make_job(tmp_path)
    run(job)
    adapter = job.output_dir / "adapter"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job.model), adapter).eval()
    row = [1, 17, 90, 33, 5]
    with torch.no_grad():
        expected = model(torch.tensor([row])).logits[0].numpy()
        base = model.get_base_model()
        with model.disable_adapter():
            untuned = base(torch.tensor([row])).logits[0].numpy()
    ours = CudaBackend().load_model(job.model, adapter, pad_token_id=0, device="cpu", dtype="float32")
    np.testing.assert_allclose(ours.logits([row])[0], expected, rtol=0, atol=1e-5)
    assert np.abs(expected - untuned).max() > 0.1  # the adapter does something


def test_a_loss_that_is_not_finite_names_step_and_rows(tmp_path: Path) -> None:
    job = make_job(
        tmp_path, optimizer=Optimizer(1e30, 0.0, 0.9, 0.999, 1e-8, 1.0), schedule=Schedule("constant", 0, 20)
    )
    first, second = job.order[1, 0]
    with pytest.raises(UserError, match=rf"step 2 \(rows {first}, {second}\) must have a finite loss"):
        run(job)
    assert not job.output_dir.exists()


def test_a_step_without_trained_tokens_is_refused(tmp_path: Path) -> None:
    ids = [5, 6, 7]
    rows = write_rows(tmp_path / "masked", [(ids, [5, -100, -100])] * 24)
    with pytest.raises(UserError, match=r"step 1 .* must have a trained token"):
        run(make_job(tmp_path, rows=rows))


def test_missing_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.arrow: .*twintune prepare"):
        run(make_job(tmp_path, rows=tmp_path))


def test_a_used_output_folder_is_refused_before_training(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (job.output_dir / "adapter").mkdir(parents=True)
    (job.output_dir / "adapter/notes.txt").write_text("mine")
    recorder = Recorder()
    with pytest.raises(UserError, match="new or empty folder"):
        CudaBackend().train(job, recorder)
    assert recorder.texts == []


def test_every_matrix_of_the_initial_adapter_must_fit(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    lora, tensors = read_adapter(job.initial_adapter)
    prefix = "base_model.model.model.layers.0.self_attn"
    del tensors[f"{prefix}.q_proj.lora_A.weight"]
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = np.zeros((4, 64), np.float32)
    tensors[f"{prefix}.v_proj.lora_B.weight"] = np.zeros((64, 4), np.float32)
    write_adapter(tmp_path / "wrong", tensors, lora, str(job.model))
    with pytest.raises(UserError) as caught:
        run(replace(job, initial_adapter=tmp_path / "wrong"))
    missing, unexpected, shape = caught.value.messages
    assert f"got no {prefix}.q_proj.lora_A.weight" in missing
    assert "layers.7.self_attn.q_proj.lora_A.weight besides" in unexpected
    assert "must have shape [32, 4], got [64, 4]" in shape


def test_every_weight_of_the_base_must_fit(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    weights = load_file(job.model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
    weights["model.norm.weight"] = torch.ones(65)
    save_file(weights, job.model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        run(job)
    missing, unexpected, mismatched = caught.value.messages
    assert missing.endswith("got missing keys model.layers.1.mlp.up_proj.weight")
    assert unexpected.endswith("got unexpected keys model.layers.0.self_attn.q_norm.weight")
    assert re.search(r"got mismatched keys .*model\.norm\.weight", mismatched)


def test_a_truncated_base_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    weights = job.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    with pytest.raises(UserError, match="the model must be whole and readable"):
        run(job)


def test_a_base_without_safetensors_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (job.model / "model.safetensors").rename(job.model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"must hold \*\.safetensors"):
        run(job)


def test_an_architecture_that_changes_its_logits_is_refused(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "granite", "granite", logits_scaling=8.0)
    with pytest.raises(UserError, match="got granite, which changes them afterwards"):
        run(replace(make_job(tmp_path), model=model))
