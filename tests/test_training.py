import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_backend import FakeBackend
from tests.smallest_recipe import RECORDS, write_json, write_smallest_recipe
from twintune.artifacts import sha256_file
from twintune.backends import Backend, Choice
from twintune.backends.job import Parallel, Rank, Step
from twintune.converters.adapter import WEIGHTS, make_initial_adapter, read_adapter
from twintune.errors import UserError
from twintune.memory_view import estimated_memory
from twintune.plan_view import plan_lines
from twintune.recipe import Recipe, load_recipe
from twintune.schedule import row_order, warmup_steps
from twintune.step_cost import StepCost
from twintune.tracking import choose_trackers
from twintune.training import run_training, versions
from twintune.training_plan import Run, decide


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    backend: Backend = fake  # the whole of what the front end asks for
    monkeypatch.setattr("twintune.training_plan.load_backend", lambda _: backend)
    monkeypatch.setattr("twintune.training_plan.choose_backend", lambda asked: Choice("fake", f"asked {asked}"))
    return fake


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOG_v", "3")
    return write_smallest_recipe(tmp_path / "work", weights=False)


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture
def out(recipe_file: Path) -> Path:
    return recipe_file.parent / "out"


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_leaves_log_adapter_recipe_and_manifest(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    run = decide(recipe, out)
    assert not out.exists()
    run_training(run)
    names = {path.name for path in out.iterdir()}
    files = {"log.jsonl", "loss_curve.png", "manifest.json", "recipe.yaml", "run.json", "started.json"}
    assert names == {"adapter", "initial_adapter", *files, *choose_trackers(None)}
    log = log_of(out)
    assert [list(line) for line in log] == [[field.name for field in (*fields(Step), *fields(StepCost))]] * 10
    assert list(log[0])[-5:] == ["seconds", "input_tokens", "tokens_per_second", "mfu", "peak_memory"]
    assert [line["step"] for line in log] == list(range(1, 11))
    assert load_recipe(out / "recipe.yaml") == load_recipe(out / "adapter" / "recipe.yaml") == recipe
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["backend"] == {"value": "fake", "reason": "asked auto"}
    assert manifest["steps"] == 10
    assert manifest["rows_fingerprint"] == run.prepared.summary.fingerprint
    assert manifest["adapter_sha256"] == sha256_file(out / "adapter" / WEIGHTS)
    assert manifest["initial_adapter_sha256"] == sha256_file(out / "initial_adapter" / WEIGHTS)
    assert manifest["versions"] == versions()


def test_the_job_is_the_recipe_in_plain_arguments(fake: FakeBackend, recipe_file: Path, out: Path) -> None:
    overrides = ["train.warmup_ratio=0.25", "train.gradient_accumulation_steps=3", "train.weight_decay=0.1"]
    overrides += ["backend.ascend.overrides.optimizer.eps=1e-6", "lora.lora_dropout=0.1", "train.seed=5"]
    recipe = load_recipe(recipe_file, overrides)
    run = decide(recipe, out)
    run_training(run)
    (job,) = fake.jobs
    assert job == run.job
    count = len(RECORDS)
    assert np.array_equal(job.order, row_order(count, recipe.train))
    assert job.order.shape == (10, 3, 2)
    assert job.schedule.warmup_steps == warmup_steps(recipe.train, 10) == 3
    assert (job.optimizer.weight_decay, job.optimizer.learning_rate) == (0.1, 1e-3)
    assert (job.lora.r, job.lora.lora_alpha, job.lora.lora_dropout) == (8, 16.0, 0.1)
    assert job.overrides == {"optimizer": {"eps": 1e-6}}
    assert (job.device, job.dtype, job.seed) == ("cpu", "float32", 5)
    assert job.row_length == run.prepared.summary.row_length
    expected = make_initial_adapter(run.config, job.lora, 5)
    _, initial = read_adapter(job.initial_adapter)
    assert all(np.array_equal(initial[name], expected[name]) for name in expected)
    assert initial.keys() == expected.keys()


def test_trainable_parameters_are_r_times_in_plus_out(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    # hidden 64, 4 heads and 2 key-value heads of 16, 2 layers: q and o are 64 to 64, k and v 64 to 32
    assert decide(recipe, out).trainable_parameters == 2 * 8 * (2 * (64 + 64) + 2 * (64 + 32))


def test_the_plan_says_what_runs_where_and_why(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    run = decide(recipe, out)
    plan = dict(plan_lines(run))
    assert plan["backend"] == "fake (asked auto)"
    assert plan["device"] == "cpu (asked auto)"
    assert plan["dtype"] == "float32 (asked auto on cpu); LoRA matrices in float32"
    assert plan["steps"] == "10 of 2 rows x 1 micro-batches: 20 rows, 1.67 epochs; 0 warm-up steps"
    assert plan["trainable parameters"] == f"{run.trainable_parameters:,} (LoRA r 8)"
    assert plan["rows"].startswith("12 in ")
    assert plan["optimizer"] == "FakeOptimizer (asked adamw_torch on cpu)"
    assert plan["schedule"] == "cosine"
    assert plan["adapter's scale"] == "2, lora_alpha / r"
    assert plan["output"] == str(out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        (Parallel(), "(on 2 devices)"),
        (Parallel(sharded=True), "(on 2 devices that shard the frozen base)"),
        (Parallel(zero_stage=2), "(on 2 devices in stage 2 of DeepSpeed's ZeRO)"),
        (Parallel(zero_stage=3, sharded=True), "(on 2 devices in stage 3 of DeepSpeed's ZeRO)"),
    ],
)
def test_the_plan_says_what_devices_share(
    fake: FakeBackend, recipe: Recipe, out: Path, parallel: Parallel, words: str
) -> None:
    run = decide(recipe, out)
    run = replace(run, job=replace(run.job, rank=Rank(0, 2), parallel=parallel))
    assert words in dict(plan_lines(run))["steps"]


def test_the_plan_says_what_schedule_and_scale_become(fake: FakeBackend, recipe_file: Path, out: Path) -> None:
    overrides = ["train.lr_scheduler_type=polynomial", "train.optim=sgd", "train.sgd_momentum=0.9"]
    run = decide(load_recipe(recipe_file, [*overrides, "lora.r=4", "lora.use_rslora=true"]), out)
    plan = dict(plan_lines(run))
    assert plan["optimizer"] == "FakeOptimizer (asked sgd on cpu)"
    assert plan["schedule"] == "polynomial (lr_end 1e-07, power 1.0)"
    assert plan["adapter's scale"] == "8, lora_alpha / sqrt(r) as lora.use_rslora asks"
    assert run.job.lora.lora_alpha / run.job.lora.r == 16 / 4**0.5
    assert (run.job.optimizer.optim, run.job.optimizer.sgd_momentum) == ("sgd", 0.9)


def test_the_memory_estimate_counts_weights_and_grows_with_the_batch(
    fake: FakeBackend, recipe_file: Path, out: Path
) -> None:
    def estimate(*overrides: str) -> float:
        return estimated_memory(decide(load_recipe(recipe_file, overrides), out))

    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 112
    weights = 4 * (2 * 400 * 64 + 2 * layer)
    assert estimate() > weights
    assert estimate("train.per_device_train_batch_size=4") > estimate()
    run = decide(load_recipe(recipe_file), out)
    assert estimate() - estimate("train.optim=sgd") == 8 * run.trainable_parameters, "two moments in float32"
    # activations alone grow, and they double
    one, two, four = (estimate(f"train.per_device_train_batch_size={batch}") for batch in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=1e-12)


def test_a_used_folder_is_refused_and_kept(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    run = decide(recipe, out)
    run_training(run)
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match="must be a new or empty folder"):
        run_training(run)
    assert sorted(out.rglob("*")) == before
    assert len(fake.jobs) == 1


def test_a_failure_before_the_first_step_leaves_no_folder(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    fake.fails_at_step = 1
    with pytest.raises(UserError, match="step 1"):
        run_training(decide(recipe, out))
    assert not out.exists()


def test_a_failure_after_a_step_leaves_the_log(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    fake.fails_at_step = 4
    with pytest.raises(UserError, match="step 4"):
        run_training(decide(recipe, out))
    assert len(log_of(out)) == 3
    assert not (out / "manifest.json").exists()
    assert not (out / "adapter").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    config = Path(recipe.model.name_or_path) / "config.json"
    write_json(config, json.loads(config.read_text()) | {"vocab_size": 300})
    with pytest.raises(UserError, match="the tokenizer's ids must be below vocab_size 300, got 3"):
        decide(recipe, out)


def test_rows_are_prepared_once_for_many_runs(fake: FakeBackend, recipe: Recipe, out: Path) -> None:
    first, second = decide(recipe, out), decide(recipe, out)
    assert first.prepared == second.prepared
    assert isinstance(first, Run)


def test_versions_name_what_is_installed() -> None:
    import numpy
    import transformers

    found = versions()
    assert found["numpy"] == numpy.__version__
    assert found["transformers"] == transformers.__version__
    assert found["python"].startswith("3.")


def test_evaluation_without_validation_rows_is_refused(fake: FakeBackend, recipe_file: Path, out: Path) -> None:
    with pytest.raises(UserError, match=r"data.val_size must keep rows for validation .* got 0.0 and no such row"):
        decide(load_recipe(recipe_file, ["train.eval_steps=2"]), out)


def test_the_best_checkpoint_must_have_been_evaluated(fake: FakeBackend, recipe_file: Path, out: Path) -> None:
    rhythm = ["data.val_size=0.3", "train.eval_steps=4", "train.save_steps=3", "train.load_best_model_at_end=true"]
    rule = r"an evaluation at each checkpoint, got checkpoints after steps 3, 6, 9, 10 and evaluations after steps 4, 8"
    with pytest.raises(UserError, match=rule):
        decide(load_recipe(recipe_file, rhythm), out)


def test_the_plan_says_what_is_evaluated_and_kept(fake: FakeBackend, recipe_file: Path, out: Path) -> None:
    rhythm = ["data.val_size=0.3", "train.eval_steps=4", "train.save_steps=2", "train.save_total_limit=3"]
    plan = dict(plan_lines(decide(load_recipe(recipe_file, rhythm), out)))
    assert plan["evaluation"].endswith("rows after steps: 4, 8, 10")
    assert plan["checkpoints"] == "after steps: 2, 4, 6, 8, 10; at most 3 stay, the best and the newest"
    assert plan["base weights"] == "frozen, in float32"
    assert plan["activations"] == "kept"


def test_four_bits_and_recomputing_take_less_memory(fake: FakeBackend, recipe_file: Path, out: Path) -> None:
    def estimate(*overrides: str) -> float:
        return estimated_memory(decide(load_recipe(recipe_file, overrides), out))

    assert estimate("model.load_in_4bit=true") < estimate()
    assert estimate("train.gradient_checkpointing=true") < estimate()
