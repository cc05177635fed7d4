import math
from pathlib import Path

import numpy as np
import pytest

from twintune.backends.job import Evaluation, Step
from twintune.run_curve import RunCurve, best_evaluation, draw_run, running_mean

PNG = b"\x89PNG\r\n\x1a\n"


def step(number: int, loss: float) -> Step:
    return Step(number, loss, 0.5, 1e-3 / number, 30, 0.5)


def evaluation(number: int, loss: float) -> Evaluation:
    return Evaluation(number, loss, 90, 1.5)


def test_a_running_mean_is_over_the_last_values_that_are_numbers() -> None:
    values = np.array([math.nan, 4.0, 2.0, math.inf, 6.0, 0.0])
    means = running_mean(values, 3)
    assert math.isnan(means[0])
    assert means[1:].tolist() == [4.0, 3.0, 3.0, 4.0, 3.0]
    assert running_mean(values[1:3], 1).tolist() == [4.0, 2.0]


def test_the_best_evaluation_is_the_first_lowest_number() -> None:
    assert best_evaluation([]) is None
    assert best_evaluation([evaluation(1, math.nan)]) is None
    several = [evaluation(1, math.nan), evaluation(2, 1.5), evaluation(3, 1.25), evaluation(4, 1.25)]
    assert best_evaluation(several) == several[2]


def test_the_curve_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "loss_curve.png"
    with RunCurve(path, seconds=0.0) as curve:
        assert not path.exists()
        curve.step(step(1, 2.0))
        first = path.read_bytes()
        assert first.startswith(PNG)
        curve.evaluated(evaluation(1, 2.5))
        curve.step(step(2, 1.0))
        assert path.read_bytes() != first
    assert [each.name for each in tmp_path.iterdir()] == ["loss_curve.png"]


def test_the_curve_is_drawn_at_the_end_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "loss_curve.png"

    def train_and_fail() -> None:
        with RunCurve(path, [step(1, 2.0)], seconds=math.inf) as curve:
            curve.step(step(2, 1.0))
            assert not path.exists()
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_and_fail()
    draw_run(tmp_path / "expected.png", [step(1, 2.0), step(2, 1.0)], [])  # those before the checkpoint as well
    assert path.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_a_run_without_a_step_has_no_curve(tmp_path: Path) -> None:
    with RunCurve(tmp_path / "loss_curve.png"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_losses_that_are_no_numbers_are_drawn_as_gaps(tmp_path: Path) -> None:
    losses = [math.nan if number % 7 == 0 else 1.0 / number for number in range(1, 61)]
    steps = [step(number, loss) for number, loss in enumerate(losses, start=1)]
    draw_run(tmp_path / "gaps.png", steps, [evaluation(0, math.inf), evaluation(30, math.nan)])
    draw_run(tmp_path / "none.png", [step(1, math.nan)], [evaluation(1, math.nan)])
    assert (tmp_path / "none.png").read_bytes().startswith(PNG)
