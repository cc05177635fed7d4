import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from twintune.converters.conversation import Conversation, Message
from twintune.converters.formats import RecordFormat, detect_format, load_format
from twintune.converters.sources import Record, read_file
from twintune.errors import UserError

NOWHERE = Path("data.json")
HUMAN, ASSISTANT = Message("human", "q"), Message("assistant", "a")
SYSTEM = Message("system", "s")
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def turns(value: Any, asked: str = "auto") -> tuple[Message, ...]:
    """The messages of a record that is the first of its file."""
    (conversation,) = detect_format(NOWHERE, [value], asked).conversations(value, "1")
    return conversation.messages


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": None, "output": "a", "history": None, "system": None}, "alpaca"),
        ({"Instruction": "q", "Input": "", "Output": "a"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "assistant", "value": "a"}]}, "sharegpt"),
        ({"messages": TALK}, "messages"),
        ({"conversations": TALK, "tools": "[]", "images": []}, "messages"),
        ({"messages": TALK, "prompt": "q", "prompt_id": "7"}, "messages"),
        ({"messages": ["q", "a"]}, "messages"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"prompt": "q", "response": "a"}, "prompt_completion"),
        ({"query": "q", "response": "a"}, "prompt_completion"),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "prompt_completion"),
        ({"question": "q", "answer": "a"}, "question_answer"),
        ({"QUESTIONS": "q", "ANSWERS": "a"}, "question_answer"),
        ({"input": "q", "golden": "a", "grade": 1}, "cmath"),
        (["q", "a"], "message_list"),
        (TALK, "message_list"),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "message_list"),
    ],
)
def test_a_question_and_its_answer_are_found_in_every_format(record: Any, name: str) -> None:
    record_format = detect_format(NOWHERE, [record])
    assert record_format.name == name
    assert record_format.conversations(record, "x1") == [Conversation("x1", (HUMAN, ASSISTANT))]


def test_system_and_history_come_before_the_question() -> None:
    record = {"instruction": "q", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]}
    earlier = [Message("human", "q1"), Message("assistant", "a1"), Message("human", "q2"), Message("assistant", "a2")]
    assert turns(record) == (SYSTEM, *earlier, HUMAN, ASSISTANT)


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        {"messages": [{"role": "system", "content": "s"}, *TALK]},
        {"prompt": [{"role": "system", "content": "s"}, *TALK[:1]], "completion": TALK[1:]},
        {"question": "q", "answer": "a", "system": "s"},
        [{"role": "system", "content": "s"}, *TALK],
    ],
)
def test_a_system_prompt_is_the_first_message(record: Any) -> None:
    assert turns(record) == (SYSTEM, HUMAN, ASSISTANT)


@pytest.mark.parametrize("key", ["text", "value"])
def test_typed_parts_are_joined(key: str) -> None:
    parts = [{"type": "text", key: "one "}, {"type": "text", key: "two"}]
    record = {"messages": [{"role": "user", "content": parts}, TALK[1]]}
    assert turns(record)[0].text == "one two"


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({}, None),
        ({"loss": None}, None),
        ({"loss": True}, True),
        ({"loss": False}, False),
        ({"weight": 1}, True),
        ({"weight": 0}, False),
        ({"loss_weight": 1.0}, True),
        ({"loss_weight": 0.0, "loss": False}, False),
    ],
)
def test_a_message_says_whether_it_is_trained(keys: dict[str, Any], trained: bool | None) -> None:
    assert turns({"messages": [TALK[0], TALK[1] | keys]})[1].trained is trained


def test_answers_in_a_prompt_of_messages_are_context() -> None:
    record = {"prompt": [*TALK, TALK[0]], "completion": [TALK[1]]}
    assert [turn.trained for turn in turns(record)] == [None, False, None, None]


def test_a_logic_problem_gives_one_conversation_a_question() -> None:
    questions = [
        {"question": "first?", "options": ["x", "y"], "answer": "B"},
        {"question": "second?", "options": ["x", "y", "z"], "answer": "C", "reasoning": "因为"},
    ]
    record = {"problem": "p", "questions": questions, "id": "round1_000"}
    one, two = detect_format(NOWHERE, [record]).conversations(record, "1")
    assert (one.id, two.id) == ("round1_000-1", "round1_000-2")
    assert one.messages == (
        Message("human", "题目:\np\n\n问题:\nfirst?\nA. x\nB. y"),
        Message("assistant", "答案是:B"),
    )
    assert two.messages[0].text == "题目:\np\n\n问题:\nsecond?\nA. x\nB. y\nC. z"
    assert two.messages[1].text == "因为\n答案是:C"


def test_a_math23k_answer_follows_its_equation() -> None:
    record = {"id": "35", "original_text": "q", "segmented_text": "q", "equation": "x=44*20", "ans": "880"}
    assert turns(record)[1].text == "x=44*20\n答案是:880"


ALPACA_PROMPT = """Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Add {these}.

### Input:
{1}

### Response:"""


@pytest.mark.parametrize(
    ("join", "text", "question"),
    [
        ("newline", "{1}", "Add {these}.\n{1}"),
        ("newline", "", "Add {these}."),
        ("concatenate", "{1}", "Add {these}.{1}"),
        ("concatenate", None, "Add {these}."),
        ("alpaca", "{1}", ALPACA_PROMPT),
        (
            "alpaca",
            " ",
            ALPACA_PROMPT.replace("\n\n### Input:\n{1}", "").replace(
                ", paired with an input that provides further context", ""
            ),
        ),
    ],
)
def test_an_instruction_and_its_input_are_joined_as_the_recipe_says(join: Any, text: str | None, question: str) -> None:
    record = {"instruction": "Add {these}.", "input": text, "output": "a"}
    record_format = detect_format(NOWHERE, [record], instruction_join=join)
    assert record_format.conversations(record, "1")[0].messages[0].text == question


@pytest.mark.parametrize(
    ("identity", "expected"), [("math7", "math7"), (7, "7"), (0, "0"), (None, "x3")], ids=["text", "7", "0", "none"]
)
def test_a_record_keeps_its_own_id(identity: Any, expected: str) -> None:
    record = {"question": "q", "answer": "a", "id": identity}
    assert detect_format(NOWHERE, [record]).conversations(record, "x3")[0].id == expected


def test_everything_wrong_with_a_record_is_told_without_file_and_row() -> None:
    record_format = detect_format(NOWHERE, [{"instruction": "q", "output": "a"}])
    with pytest.raises(UserError) as caught:
        record_format.conversations({"instruction": 1, "input": 2, "output": "", "id": []}, "1")
    assert [message.split(" must ")[0] for message in caught.value.messages] == ["instruction", "input", "output", "id"]


def test_most_records_decide_and_the_reason_counts_them() -> None:
    first = [{"text": "b"}, *[{"question": "q", "answer": "a"}] * 2, {"instruction": "q", "output": "a"}]
    record_format = detect_format(NOWHERE, first)
    assert record_format.name == "question_answer"
    assert record_format.reason == "2 of the first 4 records have question and answer"


def test_unknown_records_are_told_with_their_keys_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"known format \(sharegpt, .*\), got the keys text, url; set data\.format"):
        detect_format(NOWHERE, [{"text": "t", "url": "u"}])
    with pytest.raises(UserError, match=r"got the keys prompt, chosen, rejected"):
        detect_format(NOWHERE, [{"prompt": "q", "chosen": "a", "rejected": "b"}])


def test_the_asked_format_is_the_last_word(tmp_path: Path) -> None:
    record = {"messages": TALK, "question": "q", "answer": "b"}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    assert load_format(path).name == "messages"
    asked = load_format(path, "question_answer")
    assert (asked.name, asked.reason) == ("question_answer", "as asked")
    assert asked.conversations(record, "1")[0].messages[1].text == "b"
    with pytest.raises(UserError, match=r"records must be sharegpt, as data\.format says, got the keys messages"):
        load_format(path, "sharegpt")
    with pytest.raises(UserError, match=r"data\.format must be auto or one of .*did you mean question_answer"):
        load_format(path, "question_answers")


def test_what_is_missing_of_the_asked_format_is_told_by_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "q"}')
    asked = load_format(path, "question_answer")
    with pytest.raises(UserError, match="answer must be given, got only question"):
        asked.conversations({"question": "q"}, "1")


def test_a_format_travels_to_a_worker(tmp_path: Path) -> None:
    record_format = detect_format(tmp_path, [{"QUESTIONS": "q", "ANSWERS": "a"}], instruction_join="concatenate")
    copy: RecordFormat = pickle.loads(pickle.dumps(record_format))  # noqa: S301  what this test has written
    assert copy == record_format
    assert copy.layout.columns.prompt == "QUESTIONS"


@pytest.mark.parametrize(
    ("name", "expected", "conversations"),
    [
        ("gsm8k/train.jsonl", "question_answer", 7473),
        ("cmath/cmath_dev.jsonl", "cmath", 600),
        ("math23k/math23k_test.json", "math23k", 1000),
        ("huanhuan/huanhuan.json", "alpaca", 3729),
        ("logic/round1_train_data.jsonl", "logic_contest", 1421),
        ("fastchat/dummy_conversation.json", "sharegpt", 500),
        ("llamafactory/alpaca_zh_demo.json", "alpaca", 1000),
        ("llamafactory/v1_sft_demo.jsonl", "messages", 500),
        ("riddles/riddles.csv", "question_answer", 386),
    ],
)
def test_every_record_of_real_data_is_kept(shared_data: Path, name: str, expected: str, conversations: int) -> None:
    path = shared_data / name
    record_format = load_format(path)
    assert record_format.name == expected
    kept = []
    for record in read_file(path):
        assert isinstance(record, Record)
        kept += record_format.conversations(record.value, f"x{record.row}")
    assert len(kept) == conversations
    assert len({conversation.id for conversation in kept}) == conversations
