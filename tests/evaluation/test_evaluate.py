"""`twintune evaluate` from the command line: scores, side by side, votes, a kill, and folders that do not fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.speaking_backend import DrawingBackend, SpeakingBackend, install
from tests.smallest_recipe import write_json, write_smallest_recipe
from twintune.backends import missing_packages
from twintune.backends.job import Lora
from twintune.cli import main
from twintune.converters.adapter import write_adapter
from twintune.converters.tokens import load_tokenizer

ROOT = Path(__file__).parents[2]
GOLDS = ["3", "4", "3", "答案是 3。", "5", "3", "3"]
DRAWN = ("generate.temperature=1.0", "generate.max_new_tokens=6", "train.per_device_eval_batch_size=1")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the smallest recipe, seven questions, and an adapter in name only; it is the working folder."""
    write_smallest_recipe(tmp_path, weights=False)
    records = [{"instruction": f"{number} + 1 = ?", "input": "", "output": gold} for number, gold in enumerate(GOLDS)]
    write_json(tmp_path / "test.json", records)
    write_adapter(tmp_path / "adapter", {}, Lora(2, 4.0, 0.0, ("q_proj",)), str(tmp_path / "tiny-llama"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*arguments: str) -> Path:
    """Run the command in the working folder; the folder of its report."""
    main_with("evaluate", "recipe.yaml", "evaluate.test=test.json", *arguments)
    return Path("evaluation")


def main_with(*arguments: str) -> None:
    assert exit_code(*arguments) == 0


def exit_code(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["twintune", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
    return int(done.value.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert exit_code("evaluate", "recipe.yaml", "evaluate.test=test.json", *arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.removeprefix("twintune: ").strip()


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return report


def spoken(work: Path, base: str, tuned: str) -> SpeakingBackend:
    tokenizer = load_tokenizer(work / "tiny-llama")
    base_ids, tuned_ids = (
        [*tokenizer.encode(text, False).ids.tolist(), tokenizer.eos_token_id] for text in (base, tuned)
    )
    return SpeakingBackend(base=base_ids, tuned=tuned_ids)


def test_base_and_tuned_stand_side_by_side(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = spoken(work, "题目", "答案是 3。")
    install(backend, monkeypatch)
    report = report_of(evaluate("--adapter", "adapter", "--backend", "both"))
    assert [score["name"] for score in report["scores"]] == ["base-cuda", "tuned-cuda", "base-ascend", "tuned-ascend"]
    base, tuned = report["scores"][:2]
    assert (base["correct"], base["total"], base["no_answer"], base["wrong"]) == (0, 7, [1, 2, 3, 4, 5, 6, 7], [])
    assert (tuned["correct"], tuned["no_answer"], tuned["wrong"]) == (5, [], [2, 5])
    assert 0 < tuned["interval"]["low"] < 5 / 7 < tuned["interval"]["high"] <= 1
    pairs = {(each["first"], each["second"]): each for each in report["differences"]}
    assert set(pairs) == {
        ("base-cuda", "tuned-cuda"),
        ("base-ascend", "tuned-ascend"),
        ("base-cuda", "base-ascend"),
        ("tuned-cuda", "tuned-ascend"),
    }
    assert pairs["base-cuda", "tuned-cuda"]["only_second"] == 5
    assert pairs["tuned-cuda", "tuned-ascend"]["same_texts"] == 7
    page = (work / "evaluation" / "evaluation.md").read_text(encoding="utf-8")
    assert "### No answer found" in page
    assert "### Wrong answers" in page
    assert "5 of 7" in capsys.readouterr().out
    log = (work / "evaluation" / "answers-tuned-cuda.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[4])["gold"] == "3"
    assert json.loads(log[4])["file"] == "test.json"
    backend.loaded.clear()
    evaluate("--adapter", "adapter", "--backend", "both")
    assert not backend.loaded  # every answer is there


def test_the_answers_of_another_machine_stand_beside(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(spoken(work, "答案是 4", ""), monkeypatch)
    evaluate("--backend", "ascend", "--output-dir", "elsewhere")
    (work / "evaluation").mkdir()
    log = shutil.copy("elsewhere/answers-base-ascend.jsonl", "evaluation")
    report = report_of(evaluate("--backend", "cuda"))
    (difference,) = report["differences"]
    assert (difference["first"], difference["second"], difference["same_texts"]) == ("base-cuda", "base-ascend", 7)
    capsys.readouterr()
    whole = Path(log).read_text(encoding="utf-8")
    Path(log).write_text("".join(whole.splitlines(keepends=True)[:4]), encoding="utf-8")
    assert "the log must answer all 7 questions, got 3" in refusal(capsys, "--backend", "cuda")
    Path(log).write_text(whole.replace('"generate.seed": 0', '"generate.seed": 8'), encoding="utf-8")
    assert "got others (generate.seed: 8 there, 0 now)" in refusal(capsys, "--backend", "cuda")


def test_votes_are_drawn_and_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(DrawingBackend(), monkeypatch)
    report = report_of(evaluate("--vote", "5", "evaluate.retries=1", *DRAWN))
    (log,) = Path("evaluation").glob("answers-*.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
    assert [len(line["texts"]) for line in lines] == [5 * line["attempts"] for line in lines]
    assert all(sum(line["distribution"].values()) + line["none"] == len(line["texts"]) for line in lines)
    assert len({text for line in lines for text in line["texts"]}) > 7
    (score,) = report["scores"]
    assert (report["votes"], report["retries"]) == (5, 1)
    assert score["asked_again"] == [line["number"] for line in lines if line["attempts"] == 2]
    assert 0 <= score["agreement"] <= 1


def test_a_killed_evaluation_goes_on_to_the_very_same_answers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 45  # in the second group of questions: four of them with two texts of five steps each take 40 at most
    arguments = ("--backend", "cuda", "--vote", "2", *DRAWN)
    command = ["evaluate", "recipe.yaml", "evaluate.test=test.json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "tests.evaluation.speaking_backend", str(steps), *command]
    done = subprocess.run(program, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    log = Path("evaluation/answers-base-cuda.jsonl")
    assert len(log.read_text(encoding="utf-8").splitlines()) == 5
    install(DrawingBackend(), monkeypatch)
    evaluate(*arguments)
    resumed = log.read_bytes()
    evaluate(*arguments, "--output-dir", "unbroken")
    assert Path("unbroken/answers-base-cuda.jsonl").read_bytes() == resumed
    assert report_of(Path("unbroken"))["scores"] == report_of(Path("evaluation"))["scores"]


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_line_is_answered_again(work: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    install(DrawingBackend(), monkeypatch)
    log = evaluate("--backend", "cuda", *DRAWN) / "answers-base-cuda.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-cut])
    evaluate("--backend", "cuda", *DRAWN)
    assert log.read_bytes() == whole


def test_other_settings_need_another_folder(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(DrawingBackend(), monkeypatch)
    evaluate("--backend", "cuda", *DRAWN)
    capsys.readouterr()
    sentence = refusal(capsys, "--backend", "cuda", *DRAWN, "generate.seed=1")
    assert "answers-base-cuda.jsonl: an evaluation must go on with the settings that it began with" in sentence
    assert "got others (generate.seed: 0 there, 1 now)" in sentence
    assert "name another --output-dir" in sentence


@pytest.mark.parametrize(
    ("line", "content", "sentence"),
    [
        (0, '{"number": 1}', "line 1 must hold the settings of an evaluation"),
        (1, "{}", "line 2 must be the answer to question 1"),
        (2, "not json", "line 3 must be the answer to question 2, got 'not json'"),
        (1, None, "line 2 must be the answer to question 1"),
    ],
)
def test_a_broken_log_is_told(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: int,
    content: str | None,
    sentence: str,
) -> None:
    install(DrawingBackend(), monkeypatch)
    log = evaluate("--backend", "cuda", *DRAWN) / "answers-base-cuda.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines()
    lines[line : line + 1] = [] if content is None else [content]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert f"{log}: {sentence}" in refusal(capsys, "--backend", "cuda", *DRAWN)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate.test=none.json"], "none.json: the data must be a file, a folder or a glob, got nothing there"),
        (["evaluate.test=[]"], "recipe: evaluate.test must name files of questions, or data.val_size must be above 0"),
        (["evaluate.test=[]", "data.val_size=0.0001"], "must give at least one question, got none"),
        (["evaluate.test=5"], "recipe.yaml: evaluate.test must be a valid"),
        (["evaluate.tests=a.json"], "did you mean evaluate.test?"),
        (["evaluate.format=gsm8k"], "recipe.yaml: evaluate.format must be 'auto', 'alpaca'"),
        (["evaluate.answer=word"], "recipe.yaml: evaluate.answer must be 'auto', 'number' or 'choice', got 'word'"),
        (["evaluate.limit=0"], "recipe.yaml: evaluate.limit must be greater than or equal to 1, got 0"),
        (["evaluate.vote=0"], "recipe.yaml: evaluate.vote must be greater than or equal to 1, got 0"),
        (["evaluate.retries=-1"], "recipe.yaml: evaluate.retries must be greater than or equal to 0, got -1"),
        (["--vote", "3"], "generate.temperature must be above 0 to draw 3 answers"),
        (["--adapter", "none"], "none/adapter_config.json: --adapter must be a PEFT adapter folder"),
        (["evaluate.answer=choice"], "test.json: row 1: the gold answer must hold a letter A to E, got '3'"),
        (["evaluate.test=words.json"], "words.json: row 1: the gold answer must hold a number or a letter, got 'blue'"),
        (["evaluate.test=bad.json"], "bad.json: row 1: output must not be empty"),
        (["evaluate.test=broken.json"], "broken.json: "),
    ],
)
def test_what_a_user_can_mend_is_told_before_any_model_is_loaded(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    backend = SpeakingBackend()
    install(backend, monkeypatch)
    write_json(work / "words.json", [{"instruction": "Which colour?", "input": "", "output": "blue"}])
    write_json(work / "bad.json", [{"instruction": "Which colour?", "input": "", "output": ""}])
    (work / "broken.json").write_text('[{"instruction": ', encoding="utf-8")
    assert sentence in refusal(capsys, *arguments)
    assert not backend.loaded
    assert not (work / "evaluation").exists()


def test_a_folder_in_use_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    install(DrawingBackend(), monkeypatch)
    (work / "evaluation").mkdir()
    with FileLock(work / "evaluation" / ".lock"):
        assert "no other process evaluates into" in refusal(capsys, "--backend", "cuda")


def test_the_validation_share_is_asked_where_no_test_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(DrawingBackend(), monkeypatch)
    main_with("evaluate", "recipe.yaml", "data.val_size=0.5", "--backend", "cuda", *DRAWN)
    total = report_of(Path("evaluation"))["total"]
    assert 0 < total < 12
    assert f"questions: {total}, from data.val_size: 0.5 of data.train" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages("cuda")), reason="computes with torch")
def test_a_real_model_is_scored_on_every_backend_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_smallest_recipe(tmp_path, layers=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOG_v", "3")
    both = not missing_packages("ascend")
    sampled = ("generate.max_new_tokens=2", "evaluate.limit=2", "backend.device=cpu", "backend.dtype=float32")
    main_with("evaluate", "recipe.yaml", "evaluate.test=data.json", "--backend", "both" if both else "cuda", *sampled)
    report = report_of(Path("evaluation"))
    assert report["total"] == 2
    if both:
        (difference,) = report["differences"]
        assert difference["same_texts"] == 2  # greedy, float32: as parity's last rung has it


def test_votes_of_generate_are_printed(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(spoken(work, "答案是 3。", ""), monkeypatch)
    asked = ("generate", "--model", "tiny-llama", "--template", "none", "--prompt", "1 + 2 = ?", "--vote", "3")
    main_with(*asked, "--temperature", "0.0001")
    assert capsys.readouterr().out == "> 1 + 2 = ?\n3  (3 x 3)\n\n"
    main_with(*asked, "--temperature", "0.0001", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["prompt"], told["answer"], told["distribution"], told["tied"]) == ("1 + 2 = ?", "3", {"3": 3}, [])
