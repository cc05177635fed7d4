from pathlib import Path

import pytest

from twintune.converters.data_files import find_files
from twintune.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(entry: Path | str) -> list[str]:
    return [path.name for path in find_files(str(entry))]


def test_a_file_is_itself_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "data.txt", "part[1].json")
    assert find_files(str(tmp_path / "data.txt")) == [tmp_path / "data.txt"]
    assert names(tmp_path / "part[1].json") == ["part[1].json"]


def test_a_folder_is_its_data_in_order(tmp_path: Path) -> None:
    about = ("dataset_info.json", "README.md", "LICENSE", "CC-BY-LICENSE", ".gitattributes")
    touch(tmp_path, "b.jsonl", "a.json", "d.PARQUET", "c.csv", *about)
    assert names(tmp_path) == ["a.json", "b.jsonl", "c.csv", "d.PARQUET"]


def test_what_is_no_data_in_a_folder_is_told_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.json", "a.json.bak", "notes.txt", "more/b.json")
    with pytest.raises(UserError, match=r"files only, got a\.json\.bak, more, notes\.txt; move what is no data, or"):
        find_files(str(tmp_path))


def test_a_glob_is_what_it_matches_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.jsonl", "c.json", "dataset_info.json", "more/d.jsonl")
    assert names(tmp_path / "*.json") == ["c.json"]
    assert names(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "b.jsonl", "d.jsonl"]


def test_every_real_folder_of_data_is_found(shared_data: Path) -> None:
    for folder in ("gsm8k", "cmath", "math23k", "huanhuan", "logic", "fastchat", "riddles"):
        assert len(find_files(str(shared_data / folder))) == 1
    assert names(shared_data / "llamafactory") == ["alpaca_zh_demo.json", "v1_sft_demo.jsonl"]
