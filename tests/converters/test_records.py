import json
from pathlib import Path
from typing import Any

import pytest

from twintune.converters.conversation import Conversation, Message
from twintune.converters.json_records import read_records
from twintune.converters.records import to_conversations, write_conversations
from twintune.errors import UserError

GOOD = {"instruction": "题目：1+1？", "input": "", "output": "\n由题目可知：2"}
SPOKEN = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def save(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(list(records), ensure_ascii=False), encoding="utf-8")
    return path


def test_belle_records_become_conversations(tmp_path: Path) -> None:
    path = save(tmp_path / "data.json", GOOD, {"instruction": "Add", "input": "1 and 2", "output": "3"})
    assert to_conversations(path) == [
        Conversation("bellemath1", (Message("human", "题目：1+1？"), Message("assistant", "\n由题目可知：2"))),
        Conversation("bellemath2", (Message("human", "Add\n1 and 2"), Message("assistant", "3"))),
    ]


def test_written_conversations_have_the_fastchat_shape(tmp_path: Path) -> None:
    target = tmp_path / "conversations.json"
    write_conversations(to_conversations(save(tmp_path / "data.json", GOOD), id_prefix="math-"), target)
    turns = [{"from": "human", "value": "题目：1+1？"}, {"from": "assistant", "value": "\n由题目可知：2"}]
    assert json.loads(target.read_text(encoding="utf-8")) == [{"id": "math-1", "conversations": turns}]
    assert "题目" in target.read_text(encoding="utf-8")


def test_written_conversations_are_read_back_the_same(tmp_path: Path) -> None:
    messages = tuple(Message(role, role) for role in ("system", "human", "assistant", "human", "assistant"))
    conversations = [Conversation("a", messages)]
    write_conversations(conversations, tmp_path / "conversations.json")
    assert to_conversations(tmp_path / "conversations.json") == conversations


def test_lines_array_and_byte_order_mark_give_the_same(tmp_path: Path) -> None:
    line = json.dumps(GOOD | {"output": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "lines.jsonl").write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    (tmp_path / "array.json").write_text(f"\ufeff [{line}, {line}]", encoding="utf-8")
    assert read_records(tmp_path / "lines.jsonl") == read_records(tmp_path / "array.json")
    assert len(read_records(tmp_path / "lines.jsonl")) == 2


def test_real_conversations_are_read(shared_data: Path) -> None:
    conversations = to_conversations(shared_data / "fastchat" / "dummy_conversation.json")
    assert len(conversations) == 500
    assert conversations[0].id == "identity_0"
    assert {len(conversation.messages) for conversation in conversations} == {2, 4, 6}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["a"], r"row 2: a record must be a JSON object, got \['a'\]"),
        ({"output": "a"}, r"row 2: instruction must be given, got only output"),
        ({"instruction": "q", "response": "a"}, r"row 2: output must be given, got only instruction, response"),
        (GOOD | {"output": 7}, r"row 2: output must be a text, got 7"),
        (GOOD | {"output": None}, r"row 2: output must be a text, got None"),
        (GOOD | {"input": 7}, r"row 2: input must be a text, got 7"),
        (GOOD | {"output": " \n"}, r"row 2: output must not be empty, got ' \\n'; mend or remove the record"),
        (GOOD | {"instruction": ""}, r"row 2: instruction must not be empty"),
        (GOOD | {"output": "\ud83d"}, r"row 2: output must be text that UTF-8 can hold"),
        (GOOD | {"history": [["q", "a"]]}, r"row 2: history must be absent or empty"),
        (GOOD | {"system": "Be brief."}, r"row 2: system must be absent or empty"),
        ({"conversations": []}, r"row 2: conversations must be a list of turns that is not empty, got \[\]"),
        ({"conversations": ["q"]}, r"row 2: turn 1: a turn must be a JSON object"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, r"turn 1: from must be one of .* got 'bot'"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, r"turn 1: from must be one of"),
        ({"conversations": [{"from": "human"}]}, r"turn 1: value must be given"),
        ({"conversations": SPOKEN[:1]}, r"turns must alternate .* got human"),
        ({"conversations": [*SPOKEN, *SPOKEN[1:]]}, r"got human, assistant, assistant"),
        ({"conversations": [{"from": "system", "value": "s"}]}, r"turns must alternate .* got system"),
        ({"conversations": SPOKEN, "id": 7}, r"row 2: id must be a text, got 7"),
    ],
)
def test_bad_records_are_refused_with_their_row(tmp_path: Path, record: Any, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, record]), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        to_conversations(path)
    assert len(caught.value.messages) == 1
    assert str(caught.value).startswith(f"{path}: row 2: ")


def test_all_bad_records_are_told_at_once(tmp_path: Path) -> None:
    bad = [{"instruction": ""}] * 15
    with pytest.raises(UserError, match=r"and 10 more of 30 problems"):
        to_conversations(save(tmp_path / "data.json", *bad))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold at least one record, got an empty file"),
        (b" \n", "must hold at least one record, got an empty file"),
        (b"[]", "must hold at least one record, got none"),
        (b'[{"a": 1},\n {"a": }]', r"line 2, column 8: .*malformed JSON \(Expecting value\)"),
        (b'{"a": 1}\n{"a" 1}\n', r"line 2, column 6: .*one JSON object a line.*malformed"),
        (b'{"a": 1}\n7\n', "row 2: a record must be a JSON object, got 7"),
        (b'[{"a": "\xff"}]', "must be UTF-8 text, got byte 0xff at byte 8; save the file as UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_records(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a file that exists"):
        read_records(tmp_path / "none.json")
    with pytest.raises(UserError, match="got a folder"):
        read_records(tmp_path)


def test_neither_json_nor_lines_is_refused(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r"line 1, column 2: .* malformed JSON"):
        read_records(shared_data / "math23k" / "math23k_test.json")
