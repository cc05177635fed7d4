import pytest

from twintune.backends.job import Step
from twintune.progress import LINES, Progress
from twintune.step_cost import StepCost


def steps(count: int) -> list[Step]:
    return [Step(number, 2.0 / number, 0.5, 1e-3, 30, 0.5) for number in range(1, count + 1)]


def measured(step: Step) -> StepCost:
    return StepCost(90, step.tokens / step.seconds, 0.4321 if step.step > 1 else None, 3 * 2**29)


def watch(count: int, steps_done: int = 0) -> None:
    with Progress(count, measured, steps_done) as progress:
        progress.status("compiling the graph")
        for step in steps(count)[steps_done:]:
            progress.step(step)


def test_without_a_terminal_a_long_run_prints_few_lines(capfd: pytest.CaptureFixture[str]) -> None:
    watch(1000)
    out, err = capfd.readouterr()
    assert out == ""  # for what a command prints for machines
    told = [line for line in err.splitlines() if "step " in line]
    assert LINES <= len(told) <= LINES + 1
    assert "step 1/1000  loss 2.0000  60 trained tokens/s  1.5 GiB" in told[0]
    assert "60 trained tokens/s  MFU 43.2%  1.5 GiB" in told[1]
    assert "step 1000/1000" in told[-1]
    assert told[-1].endswith("  0 s left")
    assert "compiling the graph" in err


def test_on_a_terminal_a_bar_shows_the_figures(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    watch(5)
    out, err = capfd.readouterr()
    assert out == ""
    assert "5/5" in err
    assert "60 trained tokens/s" in err
    assert "loss 0.4000" in err


def test_a_run_that_goes_on_counts_from_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    watch(8, steps_done=5)
    _, err = capfd.readouterr()
    told = [line for line in err.splitlines() if "step " in line]
    assert "step 6/8" in told[0]
    assert "left" not in told[0]  # the first step of this process may have waited for a graph to compile
    assert told[-1].endswith("  0 s left")
    assert len(told) == 3
