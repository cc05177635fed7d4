"""The two logic recipes as their users run them, on a tiny random Qwen2: the shipped YAML, with smaller sizes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reasoning.server import Request, serve
from tests.shipped_recipes import BACKENDS, SMALL, YAMLS, lines_of, run, train_everywhere
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.converters.arrow import read_rows
from twintune.converters.tokens import load_tokenizer
from twintune.recipe_sections import LINEAR_LAYERS

SAMPLE = Path(__file__).parent / "data" / "logic_contest.jsonl"
RECORDS = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
GOLD = {question["question"]: question["answer"] for record in RECORDS for question in record["questions"]}
ASKED = "题目:\n书架上有三本书:红书在蓝书左边,蓝书在绿书左边。\n\n问题:\n哪一本书在最左边?\nA. 蓝书\nB. 红书\nC. 绿书"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("cuda" not in BACKENDS, reason="makes its tiny model with torch"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all tests here: a tiny model, the contest's records, a cache."""
    folder = tmp_path_factory.mktemp("logic")
    save_tiny_model(folder / "tiny", "qwen2", vocab_size=400, max_position_embeddings=512, num_hidden_layers=1)
    save_chatml_tokenizer(folder / "tiny")
    (folder / "questions.jsonl").write_bytes(SAMPLE.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINTUNE_CACHE", str(folder / "cache"))
        patch.setenv("DASHSCOPE_API_KEY", "sk-none")
        patch.setenv("NO_PROXY", "*")
        patch.setenv("GLOG_v", "3")
        patch.chdir(folder)
        yield folder


def texts_of(work: Path, rows: Path) -> list[tuple[str, str]]:
    """Of each row all its text, and what of it is trained; special tokens are left out, but for the last."""
    tokenizer = load_tokenizer(work / "tiny")
    texts = []
    for row in read_rows(rows / "rows.arrow"):
        trained = row.input_ids[row.labels != -100].tolist()
        closing = next(name for name, number in tokenizer.special_tokens.items() if number == trained[-1])
        texts.append((tokenizer.decode(row.input_ids.tolist()), tokenizer.decode(trained) + closing))
    return texts


def test_logic_qwen2_7b(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = YAMLS / "logic_qwen2_7b.yaml"
    overrides = [f"data.train={work}/questions.jsonl", "data.cutoff_len=512", f"model.name_or_path={work}/tiny"]
    run("prepare", str(recipe), *SMALL, *overrides, "--output-dir", str(work / "rows"))
    text, trained = texts_of(work, work / "rows")[0]
    assert text.startswith("system\n你是一个逻辑推理专家")
    assert text.endswith(f"user\n{ASKED}\nassistant\n答案是:B\n")
    assert trained == "答案是:B<|im_end|>"
    train_everywhere(recipe, work, *overrides)
    adapter = work / "logic_qwen2_7b-cuda" / "adapter"
    capsys.readouterr()
    run("generate", "--model", "tiny", "--adapter", str(adapter), "--prompt", ASKED, "--max-new-tokens", "3")
    assert capsys.readouterr().out


def answer(request: Request, prompt: str, before: int) -> None:
    question = next(question for question in GOLD if question in prompt)
    request.say(f"先看题目。\n**答案是：{GOLD[question]}**")


@pytest.fixture(scope="module")
def reasoned(work: Path) -> Path:
    """What `twintune reason` writes, asking a local server."""
    with serve(answer) as endpoint:
        run(
            "reason",
            str(YAMLS / "logic_cot_qwen2_0_5b.yaml"),
            f"reasoning.input={work}/questions.jsonl",
            f"reasoning.base_url={endpoint.url}",
            "--output",
            str(work / "reasoned.jsonl"),
        )
    assert all(headers["Authorization"] == "Bearer sk-none" for headers in endpoint.headers)
    return work / "reasoned.jsonl"


def of_cot(work: Path, reasoned: Path) -> list[str]:
    return [f"model.name_or_path={work}/tiny", f"data.train={reasoned}", "data.val_size=0", "data.cutoff_len=512"]


SECTIONS = f"{ASKED}\n\n分析过程:\n先看题目。\n答案是:B"


@pytest.mark.parametrize(
    ("train_on_prompt", "trained"), [("true", SECTIONS), ("false", "先看题目。\n答案是:B")], ids=["all", "answer"]
)
def test_reasoning_is_trained_as_plain_text_in_sections(
    work: Path, reasoned: Path, train_on_prompt: str, trained: str
) -> None:
    rows = work / f"cot-rows-{train_on_prompt}"
    overrides = [*of_cot(work, reasoned), f"data.train_on_prompt={train_on_prompt}"]
    run("prepare", str(YAMLS / "logic_cot_qwen2_0_5b.yaml"), *overrides, "--output-dir", str(rows))
    assert texts_of(work, rows)[0] == (SECTIONS, f"{trained}<|im_end|>")


def test_logic_cot_qwen2_0_5b(work: Path, reasoned: Path) -> None:
    train_everywhere(YAMLS / "logic_cot_qwen2_0_5b.yaml", work, *of_cot(work, reasoned))


# What a tiny model needs to learn the form of the answer, if not its letter.
LEARNT = [
    "train.max_steps=30",
    "train.learning_rate=1e-2",
    "train.per_device_train_batch_size=4",
    "train.gradient_accumulation_steps=1",
    "lora.lora_dropout=0",
    f"lora.target_modules=[{', '.join(LINEAR_LAYERS)}]",
    "data.train_on_prompt=false",
]


def test_a_tuned_model_reasons_and_votes(work: Path, reasoned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, adapter, scores = str(YAMLS / "logic_cot_qwen2_0_5b.yaml"), work / "learnt" / "adapter", work / "scores"
    overrides, on_cuda = of_cot(work, reasoned), ("--backend", "cuda", "--device", "cpu")
    run("train", recipe, *overrides, *LEARNT, *on_cuda, "--output-dir", str(adapter.parent))
    capsys.readouterr()
    generate = ("generate", "--model", "tiny", "--adapter", str(adapter), "--prompt", ASKED, "--max-new-tokens", "64")
    run(*generate, "--temperature", "0", *on_cuda)
    assert re.fullmatch(r"先看题目。\n答案是:[A-E]\n", capsys.readouterr().out)
    run(*generate, "--vote", "3", "--json", *on_cuda)
    voted = json.loads(capsys.readouterr().out)
    assert voted["answer"] in "ABCDE"
    assert sum(voted["distribution"].values()) + voted["none"] == 3
    limits = ["evaluate.limit=3", "evaluate.retries=1", "generate.max_new_tokens=48"]  # the base never answers
    asked = [f"evaluate.test={work}/questions.jsonl", *limits]
    command = ("evaluate", recipe, *overrides, *asked, "--adapter", str(adapter), "--vote", "3")
    run(*command, *on_cuda, "--output-dir", str(scores))
    _, *outcomes = lines_of(scores / "answers-tuned-cuda.jsonl")
    assert [outcome["gold"] for outcome in outcomes] == list(GOLD.values())[:3]
    for outcome in outcomes:
        votes = outcome["distribution"]
        assert sum(votes.values()) + outcome["none"] == 3 * outcome["attempts"]
        assert outcome["answer"] is not None
        assert votes[outcome["answer"]] == max(votes.values())


def test_a_local_model_is_asked_in_place_of_an_endpoint(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model never finds the gold answer: every question is kept without, and not asked for a second time."""
    recipe, output = str(YAMLS / "logic_cot_qwen2_0_5b.yaml"), work / "local.jsonl"
    local = [f"reasoning.input={work}/questions.jsonl", "reasoning.base_url=null", f"reasoning.model={work}/tiny"]
    limits = ["reasoning.require_gold=false", "reasoning.max_attempts=2", "reasoning.max_new_tokens=4"]
    command = ("reason", recipe, *local, *limits, "--backend", "cuda", "--device", "cpu", "--output", str(output))
    for _ in range(2):
        run(*command)
        out = capsys.readouterr().out
        assert f"read {len(GOLD)} questions: filled {len(GOLD)}, failed 0" in out
        assert f"0 were asked for, 0 came from the cache, 0 had a reasoning, {len(GOLD)} are kept without" in out
        assert lines_of(output) == RECORDS
        output.unlink()
    cached = [file for file in (work / "cache" / "reasoning").glob("*.jsonl") if len(lines_of(file)) == 2 * len(GOLD)]
    assert len({line["answer"] for file in cached for line in lines_of(file)}) > len(GOLD)  # each draw another
