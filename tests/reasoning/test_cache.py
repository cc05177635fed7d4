from pathlib import Path

import pytest

from twintune.errors import UserError
from twintune.reasoning.cache import AnswerCache


def test_answers_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "reasoning" / "answers.jsonl"
    with AnswerCache(path) as cache:
        assert cache.answers("a") == []
        cache.add("a", "一\n二")
        cache.add("b", "")
        cache.add("a", "三")
    with AnswerCache(path) as cache:
        assert (cache.answers("a"), cache.answers("b"), cache.answers("c")) == (["一\n二", "三"], [""], [])
        assert len(cache) == 3


def test_a_half_written_last_line_is_told_and_does_not_spoil_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerCache(path) as cache:
        cache.add("a", "one")
        cache.add("b", "two")
    whole = path.read_bytes()
    end_of_first = whole.index(b"\n") + 1
    for length in range(end_of_first + 1, len(whole)):  # killed at any byte of the second line
        path.write_bytes(whole[:length])
        with AnswerCache(path) as cache:
            assert (cache.answers("a"), cache.answers("b")) == (["one"], [])
            cache.add("b", "again")
        assert "the last line is half-written" in capsys.readouterr().err
        with AnswerCache(path) as cache:
            assert (cache.answers("a"), cache.answers("b")) == (["one"], ["again"])
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["{", "[]", "5", '{"key": "a"}', '{"key": "a", "answer": null}', "\xff"])
def test_a_damaged_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"key": "a", "answer": "one"}}\n{line}\n', encoding="latin-1")
    for _ in range(2):  # and the file can be opened again
        with pytest.raises(UserError, match=r"line 2 must be JSON with key and answer, got .*; remove this line"):
            AnswerCache(path).__enter__()


def test_two_processes_at_a_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with (
        AnswerCache(path),
        pytest.raises(UserError, match="the cache must be open in one process at a time, got a second one"),
        AnswerCache(path),
    ):
        pass
