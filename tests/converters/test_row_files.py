import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from twintune.backends import missing_packages
from twintune.converters import arrow, mindrecord
from twintune.converters.packing import pack_rows
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


def test_packed_rows_keep_their_lengths(kind: ModuleType, tmp_path: Path) -> None:
    rows = pack_rows(make_rows([3, 9, 4, 7, 2, 9] * 300), 16)
    options = {"packed": True} if kind is arrow else {}
    kind.write_rows(rows, tmp_path / "rows", **options)
    read = list(kind.read_rows(tmp_path / "rows"))
    assert [row.lengths for row in read] == [row.lengths for row in rows]
    assert all(np.array_equal(row.labels, back.labels) for row, back in zip(rows, read, strict=True))


def test_the_same_rows_give_the_same_bytes(kind: ModuleType, tmp_path: Path) -> None:
    for folder in ("one", "another folder"):
        (tmp_path / folder).mkdir()
        kind.write_rows(make_rows([700, 3, 1400] * 1000), tmp_path / folder / "rows")
    files = sorted((tmp_path / "one").iterdir())
    assert files
    for file in files:
        assert file.read_bytes() == (tmp_path / "another folder" / file.name).read_bytes()


def test_rows_are_taken_one_batch_at_a_time(kind: ModuleType, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    def rows() -> Iterator[Row]:
        nonlocal most
        for number in range(5000):
            row = make_rows([4])[0]
            alive.add(number)
            weakref.finalize(row.input_ids, alive.discard, number)
            most = max(most, len(alive))
            yield row

    options = {"lengths": [4] * 5000} if kind is mindrecord else {}
    kind.write_rows(rows(), tmp_path / "rows", **options)
    assert kind.count_rows(tmp_path / "rows") == 5000
    assert most <= 2001  # two batches of Arrow


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


def test_arrow_files_are_joined_in_their_order(tmp_path: Path) -> None:
    rows = pack_rows(make_rows([5, 6, 7] * 40), 18)
    arrow.write_rows(rows[:30], tmp_path / "first", packed=True)
    arrow.write_rows([], tmp_path / "none", packed=True)
    arrow.write_rows(rows[30:], tmp_path / "last", packed=True)
    arrow.join_files([tmp_path / "none", tmp_path / "first", tmp_path / "last"], tmp_path / "all")
    read = list(arrow.read_rows(tmp_path / "all"))
    assert [row.lengths for row in read] == [row.lengths for row in rows]
    assert all(np.array_equal(row.input_ids, back.input_ids) for row, back in zip(rows, read, strict=True))


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="mindspore is not installed")
class TestMindRecord:
    @pytest.fixture
    def sharded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Row], Path]:
        monkeypatch.setenv("GLOG_v", "3")
        monkeypatch.setattr(mindrecord, "ROWS_A_SHARD", 20)
        rows = make_rows([number % 7 + 2 for number in range(205)])
        mindrecord.write_rows(rows, tmp_path / "rows.mindrecord")
        return rows, tmp_path / "rows.mindrecord"

    def test_many_rows_become_shards_of_mindspores_names(self, sharded: tuple[list[Row], Path]) -> None:
        from mindspore.mindrecord import FileWriter

        rows, path = sharded
        theirs = FileWriter(str(path), shard_num=11)._paths
        assert [str(file) for file in mindrecord.shards(path)] == theirs
        assert mindrecord.count_rows(path) == 205
        read = list(mindrecord.read_rows(path))
        assert all(np.array_equal(row.input_ids, back.input_ids) for row, back in zip(rows, read, strict=True))

    def test_processes_write_the_same_shards(self, sharded: tuple[list[Row], Path], tmp_path: Path) -> None:
        rows, path = sharded
        files = [tmp_path / f"{number}.arrow" for number in range(4)]
        for number, file in enumerate(files):
            arrow.write_rows(rows[number * 60 : (number + 1) * 60], file)
        (tmp_path / "again").mkdir()
        lengths = np.array([len(row.input_ids) for row in rows])
        mindrecord.write_files(files, tmp_path / "again" / path.name, lengths, 2)
        for file in mindrecord.shards(path):
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()

    @pytest.mark.parametrize("gone", ["rows.mindrecord04", "rows.mindrecord10"])
    def test_a_missing_shard_is_noticed(self, sharded: tuple[list[Row], Path], gone: str) -> None:
        _, path = sharded
        path.with_name(gone).unlink()
        with pytest.raises(UserError, match=r"must be one file or all its shards, got rows\.mindrecord00"):
            mindrecord.count_rows(path)

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
