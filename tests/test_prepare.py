import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from tests.tiny_tokenizers import save_sentencepiece_model
from twintune.artifacts import read_sealed, write_sealed
from twintune.backends import missing_packages
from twintune.converters import arrow, mindrecord
from twintune.errors import UserError
from twintune.origin import load_origin
from twintune.prepare import find_or_prepare, prepare
from twintune.prepared import open_prepared
from twintune.recipe import Recipe, load_recipe

RECORDS = [
    {"instruction": f"题目：小华有 {number} 颗糖，又买了 3 颗。", "input": "", "output": f"\n答案是 {number + 3}。"}
    for number in range(12)
]
READERS = {"rows.arrow": arrow.read_rows, "rows.mindrecord": mindrecord.read_rows}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOG_v", "3")


def make_recipe(folder: Path, *overrides: str, records: list[Any] = RECORDS) -> Recipe:
    """A recipe as a new user writes it, with a bare tokenizer.model in the model folder."""
    if not (folder / "model").exists():
        save_sentencepiece_model(folder / "model")
    (folder / "data.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        "model: {name_or_path: ./model}\ndata: {train: ./data.json, template: vicuna_v1.1, cutoff_len: 256}\n"
    )
    return load_recipe(folder / "recipe.yaml", overrides)


def fingerprint_of(recipe: Recipe) -> str:
    return load_origin(recipe).fingerprint


def written(folder: Path) -> list[str]:
    return [name for name in READERS if (folder / name).exists()]


def test_all_formats_hold_the_same_rows_and_the_manifest_counts_them(tmp_path: Path) -> None:
    prepared = prepare(make_recipe(tmp_path), tmp_path / "out")
    expected = {"cuda": "rows.arrow", "ascend": "rows.mindrecord"}
    assert written(tmp_path / "out") == [
        file
        for name, file in expected.items()
        if not missing_packages(name)  # type: ignore[arg-type]
    ]
    summary = prepared.summary
    for name in written(tmp_path / "out"):
        rows = list(READERS[name](tmp_path / "out" / name))
        assert len(rows) == summary.count == len(RECORDS)
        assert sum(len(row.input_ids) for row in rows) == summary.tokens
        assert max(len(row.input_ids) for row in rows) == summary.row_length
        assert sum(row.trained_tokens for row in rows) == summary.trained_tokens
        assert not any(np.any(row.input_ids == summary.pad_token_id) for row in rows)
    assert summary.cut_rows == 0
    assert (summary.pad_token.value, summary.pad_token_id) == ("<unk>", 0)
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == make_recipe(tmp_path)
    assert open_prepared(tmp_path / "out") == prepared


@pytest.mark.skipif(
    bool(missing_packages("ascend") or missing_packages("cuda")), reason="needs both backends installed"
)
def test_arrow_and_mindrecord_are_identical(tmp_path: Path) -> None:
    out = prepare(make_recipe(tmp_path), tmp_path / "out").folder
    for one, other in zip(
        arrow.read_rows(out / "rows.arrow"), mindrecord.read_rows(out / "rows.mindrecord"), strict=True
    ):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)


def test_prepared_rows_are_found_again(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    out = prepare(recipe, tmp_path / "out")
    assert find_or_prepare(recipe) == out


def test_rows_are_prepared_once_in_the_cache(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    first = find_or_prepare(recipe)
    assert first.folder.is_relative_to(tmp_path / "cache")
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    assert find_or_prepare(recipe) == first
    assert (first.folder / "manifest.json").stat().st_mtime_ns == before


def test_a_folder_that_now_holds_other_rows_is_not_taken(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    out = prepare(recipe, tmp_path / "out").folder
    out.rename(tmp_path / "gone")
    prepare(make_recipe(tmp_path, "data.system=Be brief."), tmp_path / "out")
    found = find_or_prepare(recipe)
    assert found.folder != out
    assert found.summary.fingerprint == fingerprint_of(recipe)


@pytest.mark.parametrize(
    "override", ["data.template=phoenix", "data.system=Brief.", "data.cutoff_len=99", "model.pad_token=3"]
)
def test_fingerprint_changes_with_what_decides_the_rows(tmp_path: Path, override: str) -> None:
    before = fingerprint_of(make_recipe(tmp_path))
    assert fingerprint_of(make_recipe(tmp_path, "model.pad_token='3'" if "pad" in override else override)) != before


def test_fingerprint_changes_with_data_and_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    before = fingerprint_of(make_recipe(tmp_path))
    assert fingerprint_of(make_recipe(tmp_path, "train.seed=7", "lora.r=4")) == before
    assert fingerprint_of(make_recipe(tmp_path, records=RECORDS[:-1])) != before
    save_sentencepiece_model(tmp_path / "model", vocab_size=390)
    assert fingerprint_of(make_recipe(tmp_path)) != before


def test_cut_rows_are_counted(tmp_path: Path) -> None:
    whole = prepare(make_recipe(tmp_path), tmp_path / "whole").summary
    cut = prepare(make_recipe(tmp_path, f"data.cutoff_len={whole.row_length - 1}"), tmp_path / "cut").summary
    assert 0 < cut.cut_rows < cut.count
    assert cut.row_length == whole.row_length - 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val_size=0.999999", "at least one conversation must be left to train on"),
        ("data.cutoff_len=8", r"data\.json: row 1: at least one token must be trained"),
        ("data.template=nope", r"data\.template: must be .*, got 'nope'"),
        ("data.train=none.json", "the data must be a file, a folder or a glob, got nothing there"),
        ("model.pad_token=</s>", r"model\.pad_token must be"),
    ],
)
def test_bad_recipes_leave_nothing_behind(tmp_path: Path, override: str, message: str) -> None:
    recipe = make_recipe(tmp_path, override)
    with pytest.raises(UserError, match=message):
        prepare(recipe, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [
        "data.json",
        "model",
        "recipe.yaml",
    ]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock" and path.name != "parts"]


def test_every_bad_record_is_told(tmp_path: Path) -> None:
    records = [RECORDS[0], {"instruction": "q", "output": "<unk>"}, {"instruction": "<unk>", "output": "a"}]
    recipe = make_recipe(tmp_path, "data.split_special_tokens=false", records=records)
    with pytest.raises(UserError) as caught:
        prepare(recipe, tmp_path / "out")
    *told, last = caught.value.messages
    assert [message.partition("the pad")[0] for message in told] == [
        f"{tmp_path / 'data.json'}: row {row}: " for row in (2, 3)
    ]
    assert "at most 1.0% of the records may be rejected, and some must be kept, got 2 of 3" in last


def test_rejected_records_are_written_with_their_reason(tmp_path: Path) -> None:
    records = [*RECORDS, {"instruction": "q", "output": ""}, {"instruction": 3, "output": "a"}]
    recipe = make_recipe(tmp_path, "data.max_rejected_share=0.2", records=records)
    prepared = prepare(recipe, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["file"], line["record"], line["kind"]) for line in lines] == [
        ("data.json", 13, "invalid"),
        ("data.json", 14, "invalid"),
    ]
    assert "output must not be empty" in lines[0]["reason"]
    summary = prepared.summary
    assert (summary.read, summary.kept, sum(summary.rejected.values())) == (14, 12, 2)
    assert summary.count == 12


def test_too_long_records_that_are_to_be_deleted_are_no_fault(tmp_path: Path) -> None:
    whole = prepare(make_recipe(tmp_path), tmp_path / "whole").summary
    overrides = [f"data.cutoff_len={whole.row_length - 1}", "data.truncation_strategy=delete"]
    summary = prepare(make_recipe(tmp_path, *overrides), tmp_path / "out").summary
    assert summary.rejected["too_long"] > 0.01 * summary.read
    assert summary.count == summary.read - summary.rejected["too_long"]
    assert summary.cut_rows == 0


def test_used_folder_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    prepare(recipe, tmp_path / "out")
    with pytest.raises(UserError, match="must be a new or empty folder"):
        prepare(recipe, tmp_path / "out")


def test_damage_is_found(tmp_path: Path) -> None:
    out = prepare(make_recipe(tmp_path), tmp_path / "out").folder
    for name in json.loads((out / "manifest.json").read_text(encoding="utf-8"))["sha256"]:
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole + b"x")
        with pytest.raises(UserError, match=f"{name}: must have sha256"):
            open_prepared(out)
        (out / name).unlink()
        with pytest.raises(UserError, match=f"{name}: must be there"):
            find_or_prepare(make_recipe(tmp_path))
        (out / name).write_bytes(whole)
    open_prepared(out)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Each byte of each file, one at a time: a manifest is sealed, all else has its sha256 there."""
    out = prepare(make_recipe(tmp_path, records=RECORDS[:2]), tmp_path / "out").folder
    manifest = (out / "manifest.json").read_bytes()
    for position in range(len(manifest)):
        changed = bytearray(manifest)
        changed[position] ^= 1 << position % 8
        (out / "manifest.json").write_bytes(changed)
        with pytest.raises(UserError, match=r"manifest\.json: must be"):
            open_prepared(out)
    (out / "manifest.json").write_bytes(manifest)
    recorded = json.loads(manifest)["sha256"]
    assert recorded.keys() == {file.name for file in out.iterdir()} - {"manifest.json"}
    for name, expected in recorded.items():
        whole = bytearray((out / name).read_bytes())
        for position in range(len(whole)):
            whole[position] ^= 1 << position % 8
            assert hashlib.sha256(whole).hexdigest() != expected
            whole[position] ^= 1 << position % 8
            if position == 4096:  # a MindRecord is mostly zeros: what lies behind is hashed the same way
                break
    open_prepared(out)


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    one = prepare(make_recipe(tmp_path), tmp_path / "one").folder
    other = prepare(make_recipe(tmp_path, "data.system=Brief."), tmp_path / "other").folder
    for name in written(one):
        (one / name).write_bytes((other / name).read_bytes())
    with pytest.raises(UserError) as caught:
        open_prepared(one)
    assert len(caught.value.messages) == len(written(one))


def test_wrong_count_and_broken_manifest_are_found(tmp_path: Path) -> None:
    out = prepare(make_recipe(tmp_path), tmp_path / "out").folder
    manifest = read_sealed(out / "manifest.json")
    manifest["rows"]["count"] += 1
    write_sealed(out / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"rows\.\w+: must hold 13 rows, .* got 12") as caught:
        open_prepared(out)
    assert len(caught.value.messages) == len(written(out))
    (out / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="must be a manifest"):
        open_prepared(out)
    with pytest.raises(UserError, match=r"got no manifest\.json"):
        open_prepared(tmp_path)


def test_chat_template_job_on_real_conversations(
    tmp_path: Path, shared_data: Path, tiny_tokenizer_folder: Path
) -> None:
    data = shared_data / "fastchat" / "dummy_conversation.json"
    recipe = Recipe.model_validate(
        {"model": {"name_or_path": str(tiny_tokenizer_folder)}, "data": {"train": data, "cutoff_len": 2048}}
    )
    summary = prepare(recipe, tmp_path / "out").summary
    assert (summary.count, summary.cut_rows) == (500, 0)
    assert summary.pad_token.value == "<|endoftext|>"


def test_manifest_names_what_made_the_rows(tmp_path: Path) -> None:
    prepare(make_recipe(tmp_path, "data.system=Brief."), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["template"] == "vicuna_v1.1"
    assert manifest["data"]["system"] == "Brief."
    assert manifest["data"]["cutoff_len"] == 256
    assert set(manifest["sha256"]) >= {"recipe.yaml", *written(tmp_path / "out")}


def test_validation_split_stays_where_it_is_when_data_is_added(tmp_path: Path) -> None:
    def split(count: int) -> set[int]:
        recipe = make_recipe(tmp_path, "data.val_size=0.3", records=many[:count])
        out = prepare(recipe, tmp_path / f"out{count}")
        facts = read_conversations(out.folder)
        assert out.summary.validation_rows + out.summary.count == count
        return {row for row, validation in zip(facts["record"], facts["validation"], strict=True) if validation}

    many = [{"instruction": f"q{number}", "output": f"a{number}"} for number in range(60)]
    some = split(40)
    assert 4 <= len(some) <= 20
    assert {record for record in split(60) if record <= 40} == some


def test_weights_repeat_and_leave_out_records(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    (tmp_path / "more.json").write_text(json.dumps([{"question": f"q{n}", "answer": f"a{n}"} for n in range(40)]))
    files = [{"path": "data.json", "weight": 2}, {"path": "more.json", "weight": 0.25}]
    recipe = make_recipe(tmp_path, f"data.train={json.dumps(files)}")
    summary = prepare(recipe, tmp_path / "out").summary
    twice, quarter = summary.files
    assert (twice.read, twice.format.value) == (24, "alpaca")
    assert 4 <= quarter.read <= 16
    assert quarter.read + summary.left_out == 40
    assert summary.count == 24 + quarter.read
    assert summary.duplicates == 0


def test_packed_rows_hold_every_conversation_once(tmp_path: Path) -> None:
    plain = prepare(make_recipe(tmp_path), tmp_path / "plain")
    packed = prepare(make_recipe(tmp_path, "data.packing=true", "data.cutoff_len=512"), tmp_path / "packed")
    assert packed.summary.packed
    assert packed.summary.conversations == plain.summary.count
    assert packed.summary.tokens == plain.summary.tokens
    assert packed.summary.trained_tokens == plain.summary.trained_tokens
    assert packed.summary.count < plain.summary.count
    name = written(packed.folder)[0]
    rows = [row.input_ids for row in READERS[name](packed.folder / name)]
    facts = read_conversations(packed.folder)
    for number, single in enumerate(READERS[name](plain.folder / name)):
        place = slice(facts["start"][number], facts["start"][number] + facts["tokens"][number])
        assert np.array_equal(rows[facts["row"][number]][place], single.input_ids)


def read_conversations(folder: Path) -> dict[str, list[Any]]:
    with pyarrow.OSFile(str(folder / "conversations.arrow")) as source:
        columns: dict[str, list[Any]] = pyarrow.ipc.open_stream(source).read_all().to_pydict()
    return columns
