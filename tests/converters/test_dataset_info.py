import json
from pathlib import Path
from typing import Any

import pytest

from twintune.converters.conversation import Message
from twintune.converters.formats import load_format
from twintune.converters.records import to_conversations
from twintune.errors import UserError

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def save(folder: Path, entry: dict[str, Any], record: dict[str, Any]) -> Path:
    info = {"other": {"file_name": "other.json"}, "mine": {"file_name": "data.json"} | entry}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "data.json").write_text(json.dumps([record]))
    return folder / "data.json"


@pytest.mark.parametrize(
    ("entry", "record"),
    [
        ({}, {"instruction": "q", "output": "a"}),
        ({"columns": {"prompt": "text", "response": "target"}}, {"text": "q", "target": "a"}),
        ({"columns": {"prompt": "a", "query": "b", "response": "c"}}, {"a": "q", "b": "", "c": "a"}),
        (
            {"formatting": "sharegpt"},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": OPENAI_TAGS},
            {"talk": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
        (
            {"formatting": "sharegpt", "tags": {"user_tag": "me", "assistant_tag": "you", "role_tag": "who"}},
            {"conversations": [{"who": "me", "value": "q"}, {"who": "you", "value": "a"}]},
        ),
    ],
)
def test_columns_and_tags_are_those_of_the_entry(tmp_path: Path, entry: dict[str, Any], record: dict[str, Any]) -> None:
    path = save(tmp_path, entry, record)
    assert load_format(path).reason == "the entry mine of dataset_info.json says so"
    (conversation,) = to_conversations(path)
    assert conversation.messages == (Message("human", "q"), Message("assistant", "a"))


def test_system_and_history_are_read_from_their_columns(tmp_path: Path) -> None:
    columns = {"system": "persona", "history": "before"}
    record = {"instruction": "q", "output": "a", "persona": "s", "before": [["q1", "a1"]]}
    (conversation,) = to_conversations(save(tmp_path, {"columns": columns}, record))
    assert [message.text for message in conversation.messages] == ["s", "q1", "a1", "q", "a"]


def test_a_named_column_of_tools_or_pictures_must_be_empty(tmp_path: Path) -> None:
    record = {"instruction": "q", "output": "a", "picture": ["a.png"]}
    with pytest.raises(UserError, match="row 1: picture must be absent or empty"):
        to_conversations(save(tmp_path, {"columns": {"images": "picture"}}, record))


def test_the_asked_format_overrides_the_entry(tmp_path: Path) -> None:
    path = save(tmp_path, {"formatting": "sharegpt"}, {"question": "q", "answer": "a"})
    assert load_format(path, "question_answer").reason == "as asked"
    with pytest.raises(UserError, match="conversations must be given, got only question, answer"):
        to_conversations(path)


def test_a_file_without_an_entry_is_told_by_its_keys(tmp_path: Path) -> None:
    path = save(tmp_path, {}, {"question": "q", "answer": "a"})
    assert load_format(path.rename(tmp_path / "more.json")).name == "question_answer"


def test_the_real_description_is_read(shared_data: Path, tmp_path: Path) -> None:
    info = json.loads((shared_data / "llamafactory" / "dataset_info.json").read_text(encoding="utf-8"))
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    local = [entry for entry in info.values() if "file_name" in entry]
    assert len(local) >= 10
    for entry in local:
        path = tmp_path / entry["file_name"]
        if entry.get("ranking") or "kto_tag" in entry.get("columns", {}):
            with pytest.raises(UserError, match="must be answers to train on, got preferences"):
                load_format(path)
            continue
        talk = "messages" if entry.get("tags", {}).get("role_tag") == "role" else "sharegpt"
        assert load_format(path).name == (talk if entry.get("formatting") == "sharegpt" else "alpaca")
