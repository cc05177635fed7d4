from pathlib import Path
from typing import Any

import pytest

from tests.fake_backend import FakeBackend
from tests.smallest_recipe import write_smallest_recipe
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune.answering import read_questions, write_answers
from twintune.backends import Choice
from twintune.backends.job import Lora, Quantization
from twintune.chat import Chat, adapter_recipe, load_chat
from twintune.converters.adapter import write_adapter
from twintune.converters.tokens import load_tokenizer
from twintune.errors import UserError
from twintune.recipe import load_recipe
from twintune.sampling import Sampling

QUESTION = "小华有 3 颗糖，还剩几颗？"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setattr("twintune.chat.load_backend", lambda _: fake)
    monkeypatch.setattr("twintune.chat.choose_backend", lambda asked: Choice("fake", f"asked {asked}"))
    return fake


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_smallest_recipe(tmp_path, weights=False)
    return tmp_path / "tiny-llama"


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    folder = tmp_path / "adapter"
    write_adapter(folder, {}, Lora(2, 4.0, 0.0, ("q_proj",)), str(model))
    load_recipe(tmp_path / "recipe.yaml", ["data.system=Be brief.", "model.pad_token='▁'"]).save(folder / "recipe.yaml")
    return folder


def text_of(chat: Chat, question: str = QUESTION) -> str:
    return chat.tokenizer.decode(chat.prompt_ids(question))


def test_the_template_and_the_pad_come_with_the_adapter(model: Path, adapter: Path, fake: FakeBackend) -> None:
    chat = load_chat(str(model), adapter, device="cpu")
    assert text_of(chat) == f"Be brief. USER: {QUESTION} ASSISTANT:"
    assert chat.choices["template"] == Choice("vicuna_v1.1", "from the adapter's recipe.yaml")
    assert chat.choices["backend"] == Choice("fake", "asked auto")
    assert chat.choices["device"] == Choice("cpu", "asked cpu")
    assert fake.loaded == [(model, adapter, chat.tokenizer.pad_token_id, "cpu", "float32", None)]
    assert chat.tokenizer.pad.value == "▁"


def test_an_adapter_of_a_base_in_4_bits_gets_such_a_base(
    tmp_path: Path, model: Path, adapter: Path, fake: FakeBackend
) -> None:
    settings = ["model.load_in_4bit=true", "model.bnb_4bit_use_double_quant=true"]
    load_recipe(tmp_path / "recipe.yaml", settings).save(adapter / "recipe.yaml")
    chat = load_chat(str(model), adapter)
    assert fake.loaded[-1][-1] == Quantization(double_quant=True)
    assert chat.choices["base weights"] == Choice("nf4", "from the adapter's recipe.yaml, as trained")


def test_flags_are_the_last_word(model: Path, adapter: Path) -> None:
    chat = load_chat(str(model), adapter, system="Answer at length.")
    assert text_of(chat) == f"Answer at length. USER: {QUESTION} ASSISTANT:"
    raw = load_chat(str(model), adapter, template="none")
    assert raw.choices["template"] == Choice("none", "as asked")
    tokenizer = load_tokenizer(model)
    assert raw.prompt_ids(QUESTION) == tokenizer.encode(QUESTION, add_special_tokens=True).ids.tolist()


def test_a_chat_template_of_the_tokenizer_is_used(tmp_path: Path) -> None:
    chat = load_chat(str(save_chatml_tokenizer(tmp_path / "chatml")))
    assert chat.choices["template"] == Choice("tokenizer", "the tokenizer has a chat template")
    special = chat.tokenizer.special_tokens
    ids = chat.prompt_ids(QUESTION)
    assert ids.count(special["<|im_start|>"]) == 2
    assert ids.count(special["<|im_end|>"]) == 1


def test_a_model_without_any_template_is_told(model: Path) -> None:
    with pytest.raises(UserError, match="--template must be given for this model"):
        load_chat(str(model))


@pytest.mark.parametrize(("flag", "value"), [("device", "npu"), ("dtype", "float16"), ("backend", "ascend")])
def test_what_was_asked_reaches_the_backend(model: Path, flag: str, value: str) -> None:
    asked: dict[str, Any] = {flag: value}
    choices = load_chat(str(model), template="none", **asked).choices
    assert value in choices[flag].reason


def test_the_cache_asked_for_reaches_the_backend(model: Path) -> None:
    choices = load_chat(str(model), template="none", cache_implementation="paged").choices
    assert choices["cache"].reason == "asked paged on cpu in float32"


@pytest.mark.parametrize("flag", ["device", "dtype", "cache-implementation"])
def test_unknown_names_are_told_before_any_backend_sees_them(model: Path, fake: FakeBackend, flag: str) -> None:
    asked: dict[str, Any] = {flag.replace("-", "_"): "tpu"}
    with pytest.raises(UserError, match=f"--{flag} must be one of auto, .*, got 'tpu'"):
        load_chat(str(model), template="none", **asked)
    assert not fake.loaded


def test_an_adapter_that_is_not_there_is_told_first(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/adapter_config\.json: --adapter must be a PEFT adapter folder"):
        load_chat(str(model), tmp_path / "none")


def test_an_adapter_from_elsewhere_has_no_recipe(tmp_path: Path) -> None:
    assert adapter_recipe(None) is None
    assert adapter_recipe(tmp_path) is None


def test_answers_come_for_every_question(model: Path) -> None:
    chat = load_chat(str(model), template="none", batch_size=2)
    answers = chat.answer(["a", "bb", "ccc"], Sampling(max_new_tokens=3))
    assert answers == [[chat.tokenizer.decode([5, 5, 5])]] * 3


def test_answers_are_printed_for_people_and_for_machines(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = load_chat(str(model), template="none")
    said = chat.tokenizer.decode([5, 5])
    sampling = Sampling(max_new_tokens=2)
    write_answers(chat, [QUESTION], sampling, as_json=False)
    assert capsys.readouterr().out == f"{said}\n"
    write_answers(chat, [QUESTION, "b"], sampling, as_json=False)
    assert capsys.readouterr().out == f"> {QUESTION}\n{said}\n\n> b\n{said}\n\n"


def test_questions_come_from_the_command_line_and_from_files(tmp_path: Path) -> None:
    text, records = tmp_path / "questions.txt", tmp_path / "questions.jsonl"
    text.write_text("一\n\n two \n", encoding="utf-8")
    records.write_text('{"instruction": "a", "input": "b"}\n{"instruction": "c", "output": ""}\n')
    assert read_questions(["first"], text) == ["first", "一", " two "]
    assert read_questions([], records) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("q.json", '[{"instruction": "a"}, {"input": "b"}]', "row 2: instruction must be a text that is not empty"),
        ("q.json", '[{"instruction": "a", "input": 5}]', "row 1: input must be a text, got 5"),
        ("q.jsonl", '{"instruction": }', "row 1: line 1, column 17: "),
        ("q.txt", b"\xff\xfe", "--input must be a readable UTF-8 file"),
        ("q.txt", None, "--input must be a readable UTF-8 file"),
    ],
)
def test_bad_questions_are_told(tmp_path: Path, name: str, content: str | bytes | None, sentence: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_questions([], file)
    (message,) = caught.value.messages
    assert message.startswith(f"{file}: {sentence}")


def test_no_question_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for file in (None, tmp_path / "empty.txt"):
        with pytest.raises(UserError, match="--prompt or --input must give a question, got none"):
            read_questions([], file)
