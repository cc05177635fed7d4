"""The recipes of school math, persona and riddles as their users run them, on tiny random models: the shipped YAMLs."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.shipped_recipes import BACKENDS, YAMLS, lines_of, run, train_everywhere
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import save_chatml_tokenizer, save_sentencepiece_model

DATA = Path(__file__).parents[2] / "shared" / "data"  # real data, where it is
VOCABULARY = 400
PROMPTS = ["I love Beijing, because", "LLaMA is a", "Huawei is a company that"]
PERSONA = [
    {"instruction": f"第{number}位娘娘", "input": "来了。", "output": f"臣妾给第{number}位姐姐请安。"}
    for number in range(60)
]
GENERAL = [{"instruction": f"{number} 加一是几？", "input": "", "output": f"{number + 1}"} for number in range(15)]
RIDDLES = [(f"What has {number} legs in the morning?", f"a number, {number}") for number in range(60)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("cuda" not in BACKENDS, reason="makes its tiny models with torch"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all tests here: tiny models, data, a cache."""
    folder = tmp_path_factory.mktemp("recipes")
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "num_hidden_layers": 1}
    save_tiny_model(folder / "llama", "llama", **sizes)
    save_sentencepiece_model(folder / "llama", vocab_size=VOCABULARY)
    save_tiny_model(folder / "qwen2", "qwen2", **sizes)
    save_chatml_tokenizer(folder / "qwen2")
    save_tiny_model(folder / "phi", "phi", **sizes)
    end = "<|endoftext|>"  # the one special token of Phi-2's tokenizer
    save_chatml_tokenizer(folder / "phi", None, [end], eos_token=end, pad_token=end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINTUNE_CACHE", str(folder / "cache"))
        patch.setenv("GLOG_v", "3")
        patch.chdir(folder)
        yield folder


def real_or(name: str, made_up: Path) -> Path:
    return DATA / name if (DATA / name).is_file() else made_up


def json_file(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def test_belle_school_math_llama_7b(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"instruction": f"题目：{number} + 3 = ?", "input": "", "output": f"\n{number + 3}"} for number in range(24)
    ]
    data = json_file(work / "school_math.json", records)
    overrides = [f"data.train={data}", "data.cutoff_len=256", "model.name_or_path=llama", "train.learning_rate=1e-3"]
    runs = train_everywhere(YAMLS / "belle_school_math_llama_7b.yaml", work, *overrides)
    answers = set()
    for backend, folder in runs.items():
        capsys.readouterr()
        prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
        model = ("--model", "llama", "--adapter", str(folder / "adapter"), "--backend", backend, "--device", "cpu")
        run("generate", *model, "--template", "none", "--max-new-tokens", "4", "--json", *prompts)
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == PROMPTS
        answers.add("".join(lines))
    assert len(answers) == 1


QUESTIONS = ["你是谁？", "1 + 1 = ?"]
ASKED = ["generate.sample_prompts=['你是谁？', '1 + 1 = ?']", "generate.max_new_tokens=3"]
UNASKED = ["generate.num_samples=0", "generate.sample_prompts=[]"]  # two graphs less


def test_huanhuan_qwen2_1_5b(work: Path) -> None:
    data = real_or("huanhuan/huanhuan.json", json_file(work / "persona.json", PERSONA))
    overrides = [f"data.train={data}", "model.name_or_path=qwen2", *ASKED, "train.save_steps=1"]
    runs = train_everywhere(YAMLS / "huanhuan_qwen2_1_5b.yaml", work, *overrides)
    for folder in runs.values():
        assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
        report = (folder / "report.md").read_text(encoding="utf-8")
        for question in QUESTIONS:  # a table with the answers before and after
            assert question in report


def test_huanhuan_qwen2_1_5b_gentle(work: Path) -> None:
    """Persona and general instructions in equal parts, and the adapter is the best checkpoint's."""
    persona = json_file(work / "persona.json", PERSONA)
    general = json_file(work / "general.json", GENERAL)
    data = f"data.train=[{persona}, {{path: {general}, weight: 4}}]"
    overrides = [data, "model.name_or_path=qwen2", *UNASKED, "data.val_size=0.2"]
    rhythm = ["train.evals_per_epoch=null", "train.saves_per_epoch=null", "train.eval_steps=1", "train.save_steps=1"]
    runs = train_everywhere(YAMLS / "huanhuan_qwen2_1_5b_gentle.yaml", work, *overrides, *rhythm)
    for folder in runs.values():
        losses = {line["step"]: line["loss"] for line in lines_of(folder / "evaluation.jsonl")}
        best = min(losses, key=lambda step: losses[step])
        assert json.loads((folder / "manifest.json").read_text())["best_checkpoint"] == best
        weights = "adapter_model.safetensors"
        assert (folder / "adapter" / weights).read_bytes() == (folder / f"checkpoint-{best}" / weights).read_bytes()


def test_riddles_phi2_qlora(work: Path) -> None:
    """Added tokens, resized embeddings, NF4, modules trained whole, evaluation twice an epoch, merge in shards."""
    made_up = work / "riddles.csv"
    with made_up.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("QUESTIONS", "ANSWERS"), *RIDDLES])
    overrides = [
        f"data.train={real_or('riddles/riddles.csv', made_up)}",
        "model.name_or_path=phi",
        "data.cutoff_len=256",
        "data.max_rejected_share=0.1",
        "train.learning_rate=1e-3",
        *UNASKED,
        "train.evals_per_epoch=null",
        "train.saves_per_epoch=null",
        "train.eval_steps=1",
        "train.save_steps=1",
        "train.save_total_limit=1",
    ]
    runs = train_everywhere(YAMLS / "riddles_phi2_qlora.yaml", work, *overrides)
    adapters = {}
    for backend, folder in runs.items():
        assert len(lines_of(folder / "evaluation.jsonl")) == 2
        assert 1 <= len(list(folder.glob("checkpoint-*"))) <= 2  # the newest, and the best
        adapters[backend] = load_file(folder / "adapter" / "adapter_model.safetensors")
        embedding = adapters[backend]["base_model.model.model.embed_tokens.weight"]
        assert embedding.shape[0] % 64 == 0
        assert any("lm_head" in name for name in adapters[backend])
        assert any(".self_attn.dense.lora_A" in name for name in adapters[backend])
    first, last = (list(adapters.values())[place] for place in (0, -1))
    assert first.keys() == last.keys()
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, last[name], rtol=0, atol=1e-4, err_msg=name)
    merged = work / "riddles-merged"
    run("merge", str(runs["cuda"] / "adapter"), "--output-dir", str(merged), "--max-shard-size", "100KB")
    assert len(list(merged.glob("model-*.safetensors"))) > 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize(
    ("recipe", "data", "model", "rows"),
    [
        ("riddles_phi2_qlora", "riddles/riddles.csv", "phi", 386),
        ("logic_qwen2_7b", "logic/round1_train_data.jsonl", "qwen2", 1421),
        ("huanhuan_qwen2_1_5b", "huanhuan/huanhuan.json", "qwen2", 3729),
    ],
)
def test_the_real_data_prepare_whole(work: Path, recipe: str, data: str, model: str, rows: int) -> None:
    overrides = [f"data.train={DATA / data}", f"model.name_or_path={model}", "data.cutoff_len=8192"]
    run("prepare", str(YAMLS / f"{recipe}.yaml"), *overrides, "--output-dir", str(work / f"{recipe}-rows"))
    summary = json.loads((work / f"{recipe}-rows" / "manifest.json").read_text())["rows"]
    assert summary["count"] + summary["validation_rows"] == rows
