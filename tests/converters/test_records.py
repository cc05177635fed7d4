import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twintune.converters.conversation import Conversation, Message, Role
from twintune.converters.records import stream_conversations, to_conversations, write_conversations
from twintune.errors import UserError

GOOD = {"instruction": "题目：1+1？", "input": "", "output": "\n由题目可知：2"}


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
    assert write_conversations(stream_conversations(save(tmp_path / "data.json", GOOD), "math-"), target) == 1
    turns = [{"from": "human", "value": "题目：1+1？"}, {"from": "assistant", "value": "\n由题目可知：2"}]
    written = [{"id": "math-1", "conversations": turns}]
    assert target.read_text(encoding="utf-8") == json.dumps(written, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_written_piece_by_piece_is_one_indented_array(tmp_path: Path, count: int) -> None:
    messages = (Message("human", "a\n\u2028b"), Message("assistant", "c"))
    conversations = [Conversation(str(number), messages) for number in range(count)]
    assert write_conversations(iter(conversations), tmp_path / "out.json") == count
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    assert len(json.loads(text)) == count


def test_written_conversations_are_read_back_the_same(tmp_path: Path) -> None:
    roles: tuple[Role, ...] = ("system", "human", "assistant", "human", "assistant")
    messages = tuple(
        Message(role, role, trained) for role, trained in zip(roles, (None, False, False, None, True), strict=True)
    )
    conversations = [Conversation("a", messages), Conversation("b", messages[1:])]
    write_conversations(conversations, tmp_path / "conversations.json")
    assert to_conversations(tmp_path / "conversations.json") == conversations


def test_conversations_that_fail_on_the_way_leave_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[Conversation]:
        yield Conversation("a", (Message("human", "q"), Message("assistant", "a")))
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        write_conversations(failing(), tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_every_rejection_is_told_at_once_with_its_row(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD), '{"instruction": }', json.dumps(GOOD | {"output": 1, "input": 2}), json.dumps(GOOD)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        to_conversations(path)
    assert [message.removeprefix(f"{path}: ").split(", got")[0] for message in caught.value.messages] == [
        "row 2: line 2, column 17: the data must be a JSON array, or one JSON object a line",
        "row 3: input must be a text",
        "row 3: output must be a text",
    ]


def test_no_more_than_twenty_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"and 10 more of 30 problems"):
        to_conversations(save(tmp_path / "data.json", *[{"instruction": ""}] * 15))
