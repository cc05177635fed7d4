"""The command line as its user meets it: in a process of its own, where imports and exit codes show.

Commands with frameworks run in this process once one of them has run in its own: imports take longer than all else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.shipped_recipes import run as run_here
from tests.smallest_recipe import RECORDS, write_json, write_smallest_recipe
from twintune import __version__
from twintune.backends import missing_packages
from twintune.cli import main
from twintune.converters.adapter import read_adapter

COMMANDS = ("convert", "prepare", "train", "report", "generate", "evaluate")
HEAVY = {"torch", "mindspore", "mindformers", "transformers", "datasets", "fastchat", "pyarrow", "peft"}
LOG_KEYS = [
    *("step", "loss", "grad_norm", "learning_rate", "tokens", "seconds"),
    *("input_tokens", "tokens_per_second", "mfu", "peak_memory"),
]
QUESTION = RECORDS[0]["instruction"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`twintune ARGUMENTS...` in a folder, with a cache beside it."""
    environment = os.environ | {"TWINTUNE_CACHE": str(folder.parent / "cache"), "COLUMNS": "100", "GLOG_v": "3"}
    command = [sys.executable, "-m", "twintune", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def succeed(folder: Path, *arguments: str) -> str:
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def succeed_here(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """What `succeed` gives, from this process."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TWINTUNE_CACHE", str(folder.parent / "cache"))
        patch.setenv("COLUMNS", "100")
        run_here(*arguments)
    return capsys.readouterr().out


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.mark.once
@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_imports_no_framework(arguments: list[str]) -> None:
    program = (
        "import sys; from twintune.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: code = done.code\n"
        "print('\\nLOADED', code, *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    command = [sys.executable, "-c", program, *arguments, "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, code, *loaded = out.splitlines()[-1].split()
    assert code == "0"
    assert "typer" in loaded
    # typer itself looks for pydantic's types among the parameters of a command
    assert not (HEAVY if arguments else HEAVY | {"pydantic"}) & set(loaded)
    assert "Usage" in out
    expected = COMMANDS if not arguments else ("--help",)
    assert all(word in out for word in expected)


@pytest.mark.once
def test_version_and_bare_call(work: Path) -> None:
    assert succeed(work, "--version") == f"twintune {__version__}\n"
    bare = run(work)
    assert "Usage" in bare.stdout + bare.stderr


@pytest.mark.once
def test_unknown_commands_and_flags_end_with_2(work: Path) -> None:
    for arguments in (["trian"], ["train"], ["convert", "--nope"]):
        done = run(work, *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.once
def test_a_refusal_goes_to_stderr_with_exit_code_2(work: Path) -> None:
    done = run(work, "convert", "none.json", "-o", "out.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "twintune: none.json: the data must be a file that exists, got nothing there\n"


@pytest.mark.once
def test_convert_makes_fastchat_conversations(work: Path) -> None:
    write_json(work / "data.json", [*RECORDS, {"instruction": "加", "input": "1, 2", "output": "3"}])
    out = succeed(work, "convert", "data.json", "-o", "conversations.json")
    assert out == f"kept every record, rejected 0: {len(RECORDS) + 1} conversations in conversations.json\n"
    conversations = json.loads((work / "conversations.json").read_text(encoding="utf-8"))
    assert conversations[-1] == {
        "id": f"bellemath{len(RECORDS) + 1}",
        "conversations": [{"from": "human", "value": "加\n1, 2"}, {"from": "assistant", "value": "3"}],
    }
    succeed(work, "convert", "data.json", "-o", "other.json", "--id-prefix", "math")
    assert json.loads((work / "other.json").read_text(encoding="utf-8"))[0]["id"] == "math1"


@pytest.mark.once
def test_convert_takes_gsm8k_as_belle_records(work: Path, shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    problems = [json.loads(line) for line in lines]
    records = [{"instruction": one["question"], "input": "", "output": one["answer"]} for one in problems]
    write_json(work / "gsm8k.json", records)
    succeed(work, "convert", "gsm8k.json", "-o", "out.json")
    told = [one["conversations"] for one in json.loads((work / "out.json").read_text(encoding="utf-8"))]
    assert [[turn["value"] for turn in turns] for turns in told] == [
        [record["instruction"], record["output"]] for record in records
    ]


def test_prepare_prints_what_it_kept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_smallest_recipe(work, weights=False)
    out = succeed_here(capsys, work, "prepare", "recipe.yaml", "--output-dir", "rows", "data.cutoff_len=200")
    manifest = json.loads((work / "rows" / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest["rows"]
    assert "rows: rows\n" in out
    assert f"read 12 records, kept 12, rejected 0, cut {rows['cut_rows']}\n" in out
    assert "data.json: alpaca (12 of the first 12 records have instruction and output)\n" in out
    assert f"12 rows, longest {rows['row_length']} tokens\n" in out
    assert f"{rows['trained_tokens']} of {rows['tokens']} tokens are trained\n" in out
    assert manifest["data"]["cutoff_len"] == 200


@pytest.mark.skipif(bool(missing_packages("cuda")), reason="plans with torch")
def test_a_dry_run_prints_the_plan_and_writes_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_smallest_recipe(work, weights=False)
    before = sorted(work.rglob("*"))
    flags = ["--backend", "cuda", "--device", "cpu", "--dry-run", "lora.r=4"]
    out = succeed_here(capsys, work, "train", "recipe.yaml", *flags)
    assert sorted(work.rglob("*")) == before
    for line in ("backend:", "device:", "steps:", "trainable parameters:", "memory, estimated:"):
        assert line in out
    assert "cpu (as asked)" in out
    assert f"{2 * 4 * (2 * 128 + 2 * 96):,} (LoRA r 4)" in out


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="plans with mindformers")
def test_a_dry_run_for_ascend_prints_both_mindformers_yamls(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_smallest_recipe(work, weights=False)
    before = sorted(work.rglob("*"))
    flags = ["--backend", "ascend", "--device", "cpu", "--dry-run"]
    out = succeed_here(capsys, work, "train", "recipe.yaml", *flags)
    assert sorted(work.rglob("*")) == before
    assert "# mindformers_npu.yaml" in out
    assert "# mindformers_cpu.yaml" in out


def train(work: Path, backend: str) -> None:
    """The smallest recipe in a process of its own, to a log with ten losses that fall."""
    flags = ["--backend", backend, "--device", "cpu"]
    told = succeed(work, "train", "recipe.yaml", *flags, "--output-dir", f"out-{backend}")
    assert told.splitlines()[-2:] == [f"adapter: out-{backend}/adapter", f"report: out-{backend}/report.md"]
    out = work / f"out-{backend}"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(line) for line in log] == [LOG_KEYS] * 10
    assert all(np.isfinite(line["loss"]) for line in log)
    assert log[-1]["loss"] < log[0]["loss"]


def ask(capsys: pytest.CaptureFixture[str], work: Path, backend: str, adapter: str) -> list[Any]:
    questions = ["--prompt", QUESTION, "--prompt", "1?", "--max-new-tokens", "6", "--json"]
    flags = ["--model", "tiny-llama", "--adapter", adapter, "--backend", backend, "--device", "cpu"]
    told = succeed_here(capsys, work, "generate", *flags, *questions)
    answers = [json.loads(line) for line in told.splitlines()]
    assert [answer["prompt"] for answer in answers] == [QUESTION, "1?"]
    assert all(len(answer["texts"]) == 1 for answer in answers)
    return answers


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages("cuda")), reason="trains with torch")
@pytest.mark.skipif(not missing_packages("ascend"), reason="where both backends are, test_readme.py trains on it")
def test_the_smallest_recipe_on_cuda(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_smallest_recipe(work)
    train(work, "cuda")
    ask(capsys, work, "cuda", "out-cuda/adapter")
    _, tensors = read_adapter(work / "out-cuda" / "adapter")
    assert all(tensor.any() for tensor in tensors.values())  # B too has left zero
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(sys, "argv", ["twintune", "train", "recipe.yaml", "--output-dir", "out-cuda"])
        with pytest.raises(SystemExit, match="2"):
            main()
    assert "out-cuda: --output-dir must be a new or empty folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages("cuda") or missing_packages("ascend")), reason="trains on both backends")
def test_the_smallest_recipe_on_ascend_answers_alike_on_both(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_smallest_recipe(work, layers=1)
    train(work, "ascend")
    assert list((work / "out-ascend").rglob("*.ckpt"))
    answers = ask(capsys, work, "ascend", "out-ascend/adapter")
    assert ask(capsys, work, "cuda", "out-ascend/adapter") == answers
