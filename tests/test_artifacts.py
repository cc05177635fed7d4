import hashlib
import json
from pathlib import Path

import pytest
import yaml

from twintune.artifacts import (
    cache_folder,
    new_file,
    new_folder,
    parse_yaml,
    refuse_used_folder,
    sha256_file,
    sha256_json,
    write_json,
    write_yaml,
)
from twintune.errors import MOST_SHOWN, UserError, raise_collected


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def half_written_file(path: Path) -> None:
    with new_file(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError


def half_filled_folder(path: Path) -> None:
    with new_folder(path) as aside:
        (aside / "half").write_text("half")
        raise ZeroDivisionError


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"b": "题", "a": [1, None]}) == hashlib.sha256('{"a":[1,null],"b":"题"}'.encode()).hexdigest()


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with new_file(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError):
        half_written_file(path)
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["deep", "file.txt"]


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        half_filled_folder(tmp_path / "out")
    assert names(tmp_path) == []
    with new_folder(tmp_path / "out") as aside:
        (aside / "whole").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out", "whole"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as aside:
        (aside / "file").write_text("")
    assert names(tmp_path) == ["file", "out"]


def test_what_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rule = "--output-dir must be a new or empty folder, got one that is in use"
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=f"{used}: {rule}"):
            refuse_used_folder(used)
        with pytest.raises(UserError, match=rule), new_folder(used):
            pytest.fail("the block must not run")
    refuse_used_folder(tmp_path / "new")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("value", [{"b": "3e5", "a": [1e-7, "小华", None, True]}, {"text": "a: b\nc", "x": 1.5e300}])
def test_json_and_yaml_give_back_what_was_written(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "value.json", value)
    write_yaml(tmp_path / "value.yaml", value)
    text = (tmp_path / "value.yaml").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value
    assert parse_yaml(text) == yaml.safe_load(text) == value


def test_exponents_are_numbers_and_words_stay_words() -> None:
    text = "[1e-4, 1E5, .5e3, -2.e+1, '1e-4', e, 1e, 1e4x]"
    assert parse_yaml(text) == [1e-4, 1e5, 500.0, -20.0, "1e-4", "e", "1e", "1e4x"]


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("TWINTUNE_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "twintune"


def test_collected_problems_are_raised_once_and_none_is_dropped_unsaid() -> None:
    raise_collected([])
    with pytest.raises(UserError) as caught:
        raise_collected(f"problem {number}" for number in range(MOST_SHOWN + 5))
    assert len(caught.value.messages) == MOST_SHOWN + 1
    assert caught.value.messages[-1] == f"... and 5 more of {MOST_SHOWN + 5} problems"
    with pytest.raises(UserError) as caught:
        raise_collected(["one", "two"])
    assert caught.value.messages == ("one", "two")
    assert str(caught.value) == "one\ntwo"
