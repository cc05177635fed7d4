"""Every wrong setting of `twintune reason`: exit code 2, one sentence that names it, and nobody is asked."""

import json
import sys
from pathlib import Path

import pytest

from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.cli import main

SAMPLE = Path(__file__).parents[1] / "data" / "logic_contest.jsonl"
RECIPE = """\
model: {name_or_path: ./nowhere}
data: {train: ./filled.jsonl}
reasoning: {input: ./questions.jsonl, model: some-model, base_url: "http://127.0.0.1:9/v1"}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "questions.jsonl").write_bytes(SAMPLE.read_bytes())
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a refusal."""
    monkeypatch.setattr(sys, "argv", ["twintune", "reason", "recipe.yaml", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    error = capsys.readouterr().err
    assert done.value.code == 2, error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    return error


WRONG = {
    "reasoning.base_url=ftp://host/v1": "reasoning.base_url must be http:// or https:// with a host",
    "reasoning.base_url=https://me:secret@host/v1": "without name and password",
    "reasoning.base_url=api.openai.com": "reasoning.base_url must be http:// or https://",
    "reasoning.base_url=http://host:port/v1": "reasoning.base_url must be an address, got http://host:port/v1",
    "reasoning.temperature=-1": "reasoning.temperature must be greater than or equal to 0, got -1",
    "reasoning.max_new_tokens=0": "reasoning.max_new_tokens must be greater than or equal to 1, got 0",
    "reasoning.max_attempts=0": "reasoning.max_attempts must be greater than or equal to 1, got 0",
    "reasoning.max_concurrency=0": "reasoning.max_concurrency must be greater than or equal to 1, got 0",
    "reasoning.max_retries=-1": "reasoning.max_retries must be greater than or equal to 0, got -1",
    "reasoning.timeout=0": "reasoning.timeout must be greater than 0, got 0",
    "reasoning.timeout=.inf": "reasoning.timeout must be a finite number",
    "reasoning.require_gold=perhaps": "reasoning.require_gold must be a valid boolean",
    "reasoning.prompt={{ x }}": "reasoning.prompt must be",
    "reasoning.api_key=sk-1": "unknown one; did you mean reasoning.api_key_env?",
    "reasoning.model=null": "reasoning.model must be given, got nothing",
    "reasoning.api_key_env=NO_SUCH_VARIABLE": "environment: NO_SUCH_VARIABLE must hold the key",
    "reasoning.input=./none.jsonl": "none.jsonl: the data must be a file, a folder or a glob, got nothing there",
    "reasoning.input=[]": "command line: --output must be given, got nothing",
    "data.train=[a.jsonl, b.jsonl]": "command line: --output must be given, got nothing",
    "data.train=./questions.jsonl": "the output must be another file than the questions', got the same",
    "data.train=./filled.json": "filled.json: the output must be a .jsonl file, got another name",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_is_told(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert WRONG[override] in refused(monkeypatch, capsys, override)
    assert not list(work.glob("filled*"))


def test_a_key_that_is_none_is_not_shown(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "sk-\nsecret")
    error = refused(monkeypatch, capsys, "reasoning.api_key_env=TEST_ENDPOINT_KEY")
    assert "TEST_ENDPOINT_KEY must hold the key that reasoning.api_key_env names, got something else" in error
    assert "secret" not in error


def test_a_file_that_no_run_left_to_be_mended_is_kept(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "filled.jsonl").write_text("mine")
    error = refused(monkeypatch, capsys)
    assert "filled.jsonl: the output must be a new file, got one that is there" in error
    assert (work / "filled.jsonl").read_text() == "mine"


LOCAL = ["reasoning.base_url=null", "reasoning.model=./local"]


def test_a_local_model_must_be_there_and_chat(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"got {str(work / 'local')!r}, which is not there" in refused(monkeypatch, capsys, *LOCAL)
    save_chatml_tokenizer(work / "local", chat_template=None)
    assert "reasoning.model must be a model with a chat template" in refused(monkeypatch, capsys, *LOCAL)


def test_greedy_text_of_a_local_model_is_not_asked_for_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(monkeypatch, capsys, *LOCAL, "reasoning.temperature=0")
    assert "reasoning.max_attempts must be 1 for the greedy text of a local model, which is always the same" in error


def test_questions_that_all_have_their_reasoning_need_nobody(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    for record in records:
        for question in record["questions"]:
            question["reasoning"] = "因为。"
    (work / "questions.jsonl").write_text("\n".join(map(json.dumps, records)))
    monkeypatch.setattr(sys, "argv", ["twintune", "reason", "recipe.yaml"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (None, 0)
    assert "8 had a reasoning" in capsys.readouterr().out
