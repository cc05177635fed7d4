import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from twintune.backends import missing_packages
from twintune.converters import arrow, mindrecord
from twintune.converters.rows import Row
from twintune.errors import UserError


def make_rows(lengths: list[int]) -> list[Row]:
    random = np.random.default_rng(0)
    rows = []
    for length in lengths:
        input_ids = random.integers(0, 152_000, length).astype(np.int32)
        rows.append(Row(input_ids, np.where(np.arange(length) < length // 2, -100, input_ids).astype(np.int32)))
    return rows


LENGTHS = {
    "one short row": [2],
    "more than a batch": [5] * 1001,
    "one row larger than a page": [3, 50_000, 4],
    "many pages": [700] * 3000,
}


@pytest.fixture(params=[arrow, mindrecord], ids=["arrow", "mindrecord"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if request.param is mindrecord and missing_packages("ascend"):
        pytest.skip("mindspore is not installed")
    monkeypatch.setenv("GLOG_v", "3")
    module: ModuleType = request.param
    return module


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_rows_are_read_back_the_same(kind: ModuleType, tmp_path: Path, lengths: list[int]) -> None:
    rows = make_rows(lengths)
    path = tmp_path / "rows"
    kind.write_rows(rows, path)
    read = list(kind.read_rows(path))
    assert kind.count_rows(path) == len(read) == len(rows)
    for row, back in zip(rows, read, strict=True):
        assert back.input_ids.dtype == back.labels.dtype == np.int32
        assert np.array_equal(row.input_ids, back.input_ids)
        assert np.array_equal(row.labels, back.labels)


def test_file_that_is_none_is_refused(kind: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"no rows")
    with pytest.raises(UserError, match=r"rows(\.db)?: the (rows|index) must be"):
        kind.count_rows(tmp_path / "rows")
    with pytest.raises(UserError, match="rows: the rows must be"):
        list(kind.read_rows(tmp_path / "rows"))


def test_arrow_opens_as_a_dataset(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = make_rows([3, 5])
    arrow.write_rows(rows, tmp_path / "rows.arrow")
    dataset = Dataset.from_file(str(tmp_path / "rows.arrow"))
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset["labels"][1] == rows[1].labels.tolist()


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="mindspore is not installed")
class TestMindRecord:
    def test_small_data_makes_a_small_file(self, tmp_path: Path) -> None:
        mindrecord.write_rows(make_rows([5, 6]), tmp_path / "rows.mindrecord")
        assert (tmp_path / "rows.mindrecord").stat().st_size < 200_000  # bytes; 50 MB by MindSpore's defaults

    def test_renamed_folder_reads_its_own_rows(self, tmp_path: Path) -> None:
        first, second = make_rows([3, 4]), make_rows([7])
        (tmp_path / "aside").mkdir()
        mindrecord.write_rows(first, tmp_path / "aside" / "rows.mindrecord")
        (tmp_path / "aside").rename(tmp_path / "final")
        (tmp_path / "aside").mkdir()
        mindrecord.write_rows(second, tmp_path / "aside" / "rows.mindrecord")
        for _ in range(2):  # with another file at the old path, then with none
            read = list(mindrecord.read_rows(tmp_path / "final" / "rows.mindrecord"))
            assert [row.input_ids.tolist() for row in read] == [row.input_ids.tolist() for row in first]
            shutil.rmtree(tmp_path / "aside", ignore_errors=True)

    def test_rows_that_mindspore_drops_are_noticed(self, tmp_path: Path) -> None:
        good = make_rows([3])[0]
        text = np.array(["not", "a", "number"])
        bad = Row(text, good.labels)
        with pytest.raises(UserError, match="must hold all 2 rows, got 1: MindSpore dropped"):
            mindrecord.write_rows([good, bad], tmp_path / "rows.mindrecord")
