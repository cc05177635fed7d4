import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twintune.converters import source_text
from twintune.converters.sources import Record, Rejection, read_file, stable_hash
from twintune.errors import UserError

pytestmark = pytest.mark.once

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
objects = st.dictionaries(texts, values, min_size=1, max_size=4)
lists = st.lists(values, max_size=4)
spellings = st.builds(
    lambda indent, ascii_only: lambda value: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
    st.sampled_from([None, 0, 2, "\t"]),
    st.booleans(),
)
Spelling = Callable[[Any], str]
at_any_pace = settings(deadline=None)  # the machine is shared: no test of this file is timed


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources") / "data.json"


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_text, "CHUNK_BYTES", size)
        yield


def read(path: Path, text: str | bytes, chunk: int = 2**20) -> list[Record | Rejection]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with chunks_of(chunk):
        return list(read_file(path))


def records(path: Path, read_values: list[Any]) -> list[Record]:
    return [Record(path, row, value) for row, value in enumerate(read_values, 1)]


@at_any_pace
@given(st.lists(objects | lists, min_size=1, max_size=4), spellings, st.integers(1, 40), st.booleans())
def test_an_array_comes_back_identical(
    file: Path, written: list[Any], spell: Spelling, chunk: int, marked: bool
) -> None:
    assert read(file, "\ufeff" * marked + spell(written), chunk) == records(file, written)


@at_any_pace
@given(
    st.lists(objects, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n \n"]),
    st.integers(1, 40),
)
def test_lines_come_back_identical(file: Path, written: list[Any], ascii_only: bool, end: str, chunk: int) -> None:
    text = end.join(json.dumps(value, ensure_ascii=ascii_only) for value in written)
    assert read(file, text, chunk) == records(file, written)
    assert read(file, text + end, chunk) == records(file, written)


@at_any_pace
@given(st.lists(lists, min_size=2, max_size=4), st.integers(1, 40))
def test_lines_of_lists_come_back_identical(file: Path, written: list[Any], chunk: int) -> None:
    assert read(file, "\n".join(map(json.dumps, written)), chunk) == records(file, written)


@at_any_pace
@given(
    st.lists(objects, min_size=1, max_size=4), spellings, st.sampled_from(["", " ", "\n", "\n\n"]), st.integers(1, 40)
)
def test_objects_in_a_row_come_back_identical(
    file: Path, written: list[Any], spell: Spelling, between: str, chunk: int
) -> None:
    assert read(file, between.join(map(spell, written)), chunk) == records(file, written)


@at_any_pace
@given(st.data(), st.lists(objects, min_size=1, max_size=4), spellings, st.integers(1, 40))
def test_a_fault_in_an_array_is_placed_as_the_standard_library_places_it(
    file: Path, data: st.DataObject, written: list[Any], spell: Spelling, chunk: int
) -> None:
    text = spell(written)
    place = data.draw(st.integers(1, len(text)))
    text = text[:place] + data.draw(st.sampled_from(["", "?", "]", "}", '"', ",", "{"])) + text[place + 1 :]
    fault = json_fault(text)
    if fault is None:
        assert [each.row for each in read(file, text, chunk)] == list(range(1, len(json.loads(text)) + 1))
        return
    with pytest.raises(UserError) as caught:
        read(file, text, chunk)
    (message,) = caught.value.messages
    assert message.startswith(f"{file}: line {fault.lineno}, column {fault.colno}: ")


def json_fault(text: str) -> json.JSONDecodeError | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    return None


@at_any_pace
@given(st.lists(st.sampled_from(['{"a": 1}', '{"a": }', "7", '{"a": NaN}', "{", '{"a": 1} x']), min_size=1))
@example(['{"a": {"b": 1, "b": 2}', '{"a": 1}'])
def test_every_line_is_a_record_or_a_rejection_of_its_own(file: Path, lines: list[str]) -> None:
    got = read(file, '{"a": 1}\n' + "\n".join(lines))
    assert [each.row for each in got] == list(range(1, len(lines) + 2))
    assert [isinstance(each, Record) for each in got] == [True, *(line == '{"a": 1}' for line in lines)]


@at_any_pace
@given(texts, st.sampled_from([b"\xff", b"\xc3(", b"\xed\xa0\x80"]), st.integers(1, 7))
def test_a_bad_byte_is_told_with_its_offset(file: Path, before: str, bad: bytes, chunk: int) -> None:
    head = f'{{"a": "{before.replace(chr(0), "")}'.encode()
    with pytest.raises(UserError, match=rf"got byte 0x{bad[0]:02x} at byte {len(head)}; save the file as UTF-8"):
        read(file, head + bad + b'"}', chunk)


@pytest.mark.parametrize(
    "text",
    [
        '{"turns": [\n{"from": "human"},\n{"from": "gpt"}\n]}\n' * 3,
        '{"turns":\n[{"from": "human"}, {"from": "gpt"}]}' * 3,
        '{"turns": [{"from": "human"},\n\n {"from": "gpt"}]\n}\n' * 3,
    ],
)
def test_objects_may_break_their_lines_anywhere(file: Path, text: str) -> None:
    assert read(file, text) == records(file, [{"turns": [{"from": "human"}, {"from": "gpt"}]}] * 3)


def test_white_space_of_unicode_is_text(file: Path) -> None:
    got = read(file, '{"a": "b\u2028c"}\n\u3000\n{"a": "\u3000"}\n')
    assert [type(each) for each in got] == [Record, Rejection, Record]


def test_a_csv_cell_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    text = '\ufeffquestion, answer\r\n"a, ""b""\r\nc",d\r\n\r\n"",e\r\n'
    expected = [{"question": 'a, "b"\r\nc', "answer": "d"}, {"question": "", "answer": "e"}]
    path = tmp_path / "data.csv"
    for chunk in (1, 5, 2**20):
        assert read(path, text, chunk) == records(path, expected)


def test_content_decides_and_the_name_only_hints(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", '[{"a": 1}]') == records(tmp_path / "a.csv", [{"a": 1}])
    assert read(tmp_path / "a.json", "question,answer\nq,a\n") == records(
        tmp_path / "a.json", [{"question": "q", "answer": "a"}]
    )


@pytest.mark.parametrize("name", ["data.parquet", "data.json"])
def test_parquet_comes_back_row_by_row(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"messages": [{"role": "user", "content": "q"}], "id": number} for number in range(3000)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    assert list(read_file(tmp_path / name)) == records(tmp_path / name, rows)


@pytest.mark.parametrize("arrangement", ["array", "lines", "objects"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, arrangement: str) -> None:
    record = {"instruction": "题目" * 100, "output": "9" * 100}
    text = json.dumps(record, ensure_ascii=False, indent=1 if arrangement == "objects" else None)
    between = ",\n" if arrangement == "array" else "\n"
    body = between.join([text] * 30_000)
    path = tmp_path / "data.json"
    path.write_text(f"[{body}]" if arrangement == "array" else body, encoding="utf-8")
    del body
    assert path.stat().st_size > 20 * source_text.CHUNK_BYTES
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_file(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30_000
    assert peak < 10 * source_text.CHUNK_BYTES  # a chunk as bytes, as text of 2 bytes a character, and as lines


@at_any_pace
@given(objects)
def test_the_hash_is_of_the_content(value: dict[str, Any]) -> None:
    assert 0 <= stable_hash(value) < 1
    assert stable_hash(value) == stable_hash(dict(reversed(value.items())))


def test_the_hash_is_the_same_everywhere_and_even() -> None:
    # First 8 bytes of: printf '{"instruction":"题目","output":1}' | sha256sum
    expected = 0x79D4794B04E23AD0 / 2**64
    assert abs(stable_hash({"output": 1, "instruction": "题目"}) - expected) <= 2**-53
    below = sum(stable_hash({"id": number}) < 0.1 for number in range(10_000))
    assert 900 < below < 1100  # 1000 +- 3.3 standard deviations, of fixed numbers


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("gsm8k/train.jsonl", 7473),
        ("cmath/cmath_dev.jsonl", 600),
        ("math23k/math23k_test.json", 1000),
        ("huanhuan/huanhuan.json", 3729),
        ("logic/round1_train_data.jsonl", 500),
        ("fastchat/dummy_conversation.json", 500),
        ("llamafactory/alpaca_zh_demo.json", 1000),
        ("llamafactory/v1_sft_demo.jsonl", 500),
        ("riddles/riddles.csv", 386),
    ],
)
def test_every_row_of_real_data_is_read(shared_data: Path, name: str, rows: int) -> None:
    read_rows = list(read_file(shared_data / name))
    assert [each.row for each in read_rows] == list(range(1, rows + 1))
    assert all(isinstance(each, Record) for each in read_rows)
