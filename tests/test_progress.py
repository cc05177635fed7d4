import json
from pathlib import Path

import pytest

from twintune.backends import Step
from twintune.progress import LINES, Progress


def steps(count: int) -> list[Step]:
    return [Step(number, 2.0 / number, 0.5, 1e-3, 30, 0.5) for number in range(1, count + 1)]


def watch(log: Path, count: int) -> None:
    with Progress(log, count) as progress:
        progress.status("compiling the graph")
        for step in steps(count):
            progress.step(step)


def test_each_step_is_one_line_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with Progress(log, 3) as progress:
        for step in steps(3):
            progress.step(step)
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            assert len(lines) == step.step  # readable while the run goes on
    assert lines[1] == {
        "step": 2,
        "loss": 1.0,
        "grad_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens": 30,
        "seconds": 0.5,
    }


def test_without_a_terminal_a_long_run_prints_few_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch(tmp_path / "log.jsonl", 1000)
    out, err = capfd.readouterr()
    assert out == ""  # for what a command prints for machines
    told = [line for line in err.splitlines() if "step " in line]
    assert LINES <= len(told) <= LINES + 1
    assert "step 1/1000  loss 2.0000  60 trained tokens/s" in told[0]
    assert "step 1000/1000" in told[-1]
    assert told[-1].endswith("  0 s left")
    assert "compiling the graph" in err


def test_on_a_terminal_a_bar_shows_the_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    watch(tmp_path / "log.jsonl", 5)
    out, err = capfd.readouterr()
    assert out == ""
    assert "5/5" in err
    assert "60 trained tokens/s" in err
    assert "loss 0.4000" in err
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5
