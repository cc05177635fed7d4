import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from twintune.backends.job import Evaluation, Step
from twintune.errors import UserError
from twintune.run_log import EVALUATIONS, LOG, RunLog, cut_back, read_costs, read_evaluations, read_log, read_steps
from twintune.step_cost import StepCost

STEPS = [Step(number, 2.0 / number, 0.5, 1e-3, 30, 0.5) for number in range(1, 7)]
EVALUATION_LIST = [Evaluation(0, 3.0, 90, 1.5), Evaluation(3, 2.0, 90, 1.5), Evaluation(6, 1.0, 90, 1.5)]


def measured(step: Step) -> StepCost:
    return StepCost(90, 60.0, 0.25 if step.step % 2 else None, 2**30)


def write_run(folder: Path, first: int = 1, last: int = 6) -> None:
    with RunLog(folder, measured, first - 1) as log:
        for step in STEPS[first - 1 : last]:
            log.step(step)
            for evaluation in EVALUATION_LIST:
                if evaluation.step == step.step:
                    log.evaluated(evaluation)


def write_log(path: Path, steps: Sequence[Step]) -> Path:
    path.write_text("".join(json.dumps(asdict(step)) + "\n" for step in steps), encoding="utf-8")
    return path


def test_each_line_can_be_read_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, measured) as log:
        log.evaluated(EVALUATION_LIST[0])
        assert read_evaluations(tmp_path / EVALUATIONS) == EVALUATION_LIST[:1]
        for step in STEPS:
            log.step(step)
            assert read_log(tmp_path / LOG) == STEPS[: step.step]


def test_the_lines_have_these_keys(tmp_path: Path) -> None:
    write_run(tmp_path)
    lines = (tmp_path / LOG).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [asdict(step) | asdict(measured(step)) for step in STEPS]
    first = json.loads((tmp_path / EVALUATIONS).read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "step": 3,
        "loss": 2.0,
        "perplexity": pytest.approx(7.389056098930650),
        "tokens": 90,
        "seconds": 1.5,
    }


def test_a_log_of_an_older_version_has_steps_and_no_costs(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert read_costs(tmp_path / LOG) == [measured(step) for step in STEPS]
    write_log(tmp_path / LOG, STEPS)
    assert read_log(tmp_path / LOG) == STEPS
    assert read_costs(tmp_path / LOG) == [None] * len(STEPS)


def test_a_run_without_evaluation_has_no_such_file(tmp_path: Path) -> None:
    with RunLog(tmp_path, measured) as log:
        log.step(STEPS[0])
    assert [path.name for path in tmp_path.iterdir()] == [LOG]
    assert read_evaluations(tmp_path / EVALUATIONS) == []


def test_a_run_that_goes_on_leaves_the_logs_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write_run(whole)
    write_run(broken)
    with (broken / LOG).open("a", encoding="utf-8") as log:
        log.write('{"step": 7, "lo')  # killed while it wrote
    said = cut_back(broken, 4)
    assert said == [
        "log.jsonl: dropped 2 of 6 lines, behind the checkpoint, and one that was half-written",
        "evaluation.jsonl: dropped 1 of 2 lines, behind the checkpoint",
    ]
    assert read_log(broken / LOG) == STEPS[:4]
    assert read_evaluations(broken / EVALUATIONS) == EVALUATION_LIST[1:2]
    write_run(broken, first=5)
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_nothing_behind_the_checkpoint_changes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = (tmp_path / LOG).stat()
    assert cut_back(tmp_path, 6) == []
    assert (tmp_path / LOG).stat() == before


def test_a_log_that_ends_before_the_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    write_run(tmp_path, last=3)
    before = (tmp_path / LOG).read_bytes()
    with pytest.raises(UserError, match="must have all steps up to 4 to go on from there, got 3"):
        cut_back(tmp_path, 4)
    assert (tmp_path / LOG).read_bytes() == before


def test_a_half_written_line_is_no_step(tmp_path: Path) -> None:
    write_run(tmp_path)
    with (tmp_path / LOG).open("ab") as log:
        log.write('{"é'.encode()[:-1])  # within a character
    assert read_steps(tmp_path / LOG) == STEPS
    with pytest.raises(UserError, match="line 7 must end, got one that is half-written"):
        read_log(tmp_path / LOG)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"step": 2', r"line 2 must be JSON, got: .*column"),
        ("[]", r"line 2 must be an object with step, loss, .*, got \[\]"),
        (json.dumps(asdict(STEPS[1]) | {"extra": 1}), r"line 2 must be an object with step, loss"),
        (json.dumps(asdict(STEPS[1]) | {"loss": "1"}), r"whose loss is a number of the right kind, got '1'"),
        (
            json.dumps(asdict(STEPS[1]) | {"tokens": 1.5}),
            r"whose tokens is a number of the right kind, got 1.5",
        ),
        (
            json.dumps(asdict(STEPS[1]) | {"loss": True}),
            r"whose loss is a number of the right kind, got True",
        ),
        (json.dumps(asdict(STEPS[2])), r"line 2 must be step 2, got step 3"),
        (json.dumps(asdict(STEPS[1]) | {"mfu": 0.5}), r"line 2 must be an object with step, loss"),
        (
            json.dumps(asdict(STEPS[1]) | asdict(measured(STEPS[1])) | {"mfu": "0.5"}),
            r"whose mfu is a number of the right kind, got '0.5'",
        ),
    ],
)
def test_a_wrong_step_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    path = write_log(tmp_path / LOG, STEPS[:1])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=sentence) as error:
        read_log(path)
    assert str(path) in str(error.value)


def test_all_wrong_lines_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("x\ny\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_log(tmp_path / LOG)
    assert len(error.value.messages) == 2


def test_no_log_and_an_empty_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a readable UTF-8 file"):
        read_log(tmp_path / LOG)
    (tmp_path / LOG).touch()
    with pytest.raises(UserError, match="at least one step, got an empty file"):
        read_log(tmp_path / LOG)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[]", r"line 1 must be an object with step, loss, perplexity, tokens, seconds, got \[\]"),
        ('{"step": 1}', "line 1 must be an object with step, loss, perplexity"),
        (
            '{"step": 1, "loss": "1", "perplexity": 2, "tokens": 3, "seconds": 4}',
            "an evaluation whose loss is a number",
        ),
    ],
)
def test_a_wrong_evaluation_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / EVALUATIONS).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_evaluations(tmp_path / EVALUATIONS)
