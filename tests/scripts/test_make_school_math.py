"""The data set is what it says: distinct, reproducible, right arithmetic, one form of answer."""

import json
import re
import subprocess
import sys
from operator import add, mul, sub, truediv
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_school_math.py"
ENDINGS = {"en": re.compile(r"\. The answer is (\d+)\.$"), "zh": re.compile(r"。答案是：(\d+)$")}
OPERATORS = {"+": add, "-": sub, "*": mul, "×": mul, "/": truediv, "÷": truediv}
Written = tuple[str, Path, str]  # the language, the folder and what was printed


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--output-dir", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    records = json.loads((folder / name).read_text(encoding="utf-8"))
    assert isinstance(records, list)
    return records


def result(calculation: str) -> float:
    """Left to right, as the data set writes it: one operator, or a product and a quotient."""
    first, *rest = calculation.split()
    value = float(first)
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        value = OPERATORS[operator](value, float(operand))
    return value


@pytest.fixture(scope="module", params=["en", "zh"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp(request.param)
    done = make(folder, "--language", request.param, "--train", "1200", "--test", "200")
    assert (done.returncode, done.stderr) == (0, "")
    return request.param, folder, done.stdout


def test_the_records_are_belle_and_distinct(written: Written) -> None:
    _, folder, _ = written
    train, test = read(folder, "train.json"), read(folder, "test.json")
    assert (len(train), len(test)) == (1200, 200)
    assert all(record.keys() == {"instruction", "input", "output"} for record in train + test)
    assert len({record["instruction"] for record in train + test}) == 1400


def test_no_held_out_calculation_is_trained_on(written: Written) -> None:
    _, folder, _ = written
    trained = {record["output"] for record in read(folder, "train.json")}
    assert trained.isdisjoint(record["output"] for record in read(folder, "test.json"))


def test_every_step_is_right_and_the_last_gives_the_answer(written: Written) -> None:
    language, folder, _ = written
    for record in read(folder, "train.json") + read(folder, "test.json"):
        ending = ENDINGS[language].search(record["output"])
        assert ending, record
        steps = re.split(r"\. |，", record["output"][: ending.start()])
        for step in steps:
            calculation, _, value = step.partition(" = ")
            assert result(calculation) == int(value), record
        assert steps[-1].endswith(f"= {ending.group(1)}"), record


def test_a_step_uses_only_numbers_that_are_known(written: Written) -> None:
    _, folder, _ = written
    for record in read(folder, "train.json"):
        known = set(re.findall(r"\d+", record["instruction"])) | {"2", "100"}  # a perimeter's 2, per cent
        for step in re.findall(r"[\d +\-*/×÷]+ = \d+", record["output"]):
            calculation, _, value = step.partition(" = ")
            assert known.issuperset(re.findall(r"\d+", calculation)), record
            known.add(value)


def test_there_are_at_least_twelve_kinds_in_equal_numbers(written: Written) -> None:
    language, folder, printed = written
    line = next(line for line in printed.splitlines() if line.startswith(f"{folder / 'train.json'}: 1200"))
    counts = [int(count) for count in re.findall(rf"\({language}\) (\d+)", line)]
    assert len(counts) >= 12
    assert sum(counts) == 1200
    assert max(counts) - min(counts) <= 1


def test_the_languages_do_not_mix(written: Written) -> None:
    language, folder, _ = written
    for record in read(folder, "train.json"):
        text = record["instruction"] + record["output"]
        if language == "en":
            assert text.isascii(), record
        else:
            assert record["instruction"].startswith("题目："), record
            assert not re.search(r"[A-Za-z]", text), record


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert make(tmp_path / name, "--train", "50", "--test", "30", "--seed", seed).returncode == 0
    for file in ("train.json", "test.json"):
        first, again, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == again
        assert first != other


def test_both_languages_share_the_set(tmp_path: Path) -> None:
    assert make(tmp_path, "--train", "56", "--test", "28").returncode == 0
    chinese = [record for record in read(tmp_path, "train.json") if record["instruction"].startswith("题目：")]
    assert len(chinese) == 28


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--train", "1000000"), r"distinct problems, \d+ are wanted; ask for fewer with --train or --test"),
        (("--train", "0"), "--train must be at least 1, got 0"),
        (("--language", "fr"), "--language"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = make(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert re.search(sentence, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
