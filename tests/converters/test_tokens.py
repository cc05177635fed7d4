import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_tokenizers import (
    CHATML,
    change_config,
    save_chatml_tokenizer,
    save_fast_twin,
    save_sentencepiece_model,
)
from twintune.backends import missing_packages
from twintune.converters.conversation import Conversation, Message
from twintune.converters.fast_tokenizer import FastTokenizer
from twintune.converters.rows import make_row
from twintune.converters.templates import load_template
from twintune.converters.tokenizer import Tokenizer
from twintune.converters.tokens import load_tokenizer, tokenizer_hash
from twintune.errors import UserError

AWKWARD = [
    "USER: 1+1? ASSISTANT: 2</s>",
    "two  spaces, a tab\t, a newline\n and \n\n more ",
    " leading space",
    "由题目可知：𠮷 is rare, 🙂 too; é and e\u0301",
    "<s>由</s>题 </s> <unk>x",
    "</s></s>",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_sentencepiece_alone_encodes_as_the_fast_tokenizer(
    tiny_sentencepiece_folder: Path, tiny_fast_twin_folder: Path, text: str, add_special_tokens: bool
) -> None:
    alone = load_tokenizer(tiny_sentencepiece_folder).encode(text, add_special_tokens)
    fast = load_tokenizer(tiny_fast_twin_folder).encode(text, add_special_tokens)
    assert alone.ids.tolist() == fast.ids.tolist()
    assert [text[a:b].strip() for a, b in alone.offsets] == [text[a:b].strip() for a, b in fast.offsets]


@pytest.fixture(scope="module")
def rows_alone(shared_data: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of GSM8K's rows by LLaMA 2's tokenizer.model alone."""
    return rows_of_gsm8k(load_tokenizer(shared_data / "tokenizers" / "llama2" / "tokenizer.model"), shared_data)


@pytest.mark.parametrize("declared", ["PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"])
def test_sentencepiece_alone_agrees_with_the_fast_tokenizer_on_gsm8k(
    shared_data: Path, rows_alone: list[tuple[list[int], list[int]]], tmp_path: Path, declared: str
) -> None:
    model = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    fast = load_tokenizer(change_config(save_fast_twin(model, tmp_path), tokenizer_class=declared))
    assert differing(rows_alone, rows_of_gsm8k(fast, shared_data)) == []


def test_sentencepiece_alone_agrees_with_the_tokenizer_that_transformers_makes(
    shared_data: Path, rows_alone: list[tuple[list[int], list[int]]], tmp_path: Path
) -> None:
    pytest.importorskip("google.protobuf", reason="transformers converts tokenizer.model with protobuf only")
    import transformers

    model = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    keys = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(keys))
    if transformers.__version__.startswith("5."):  # it gives other ids on each of these records, and no bos
        with pytest.raises(UserError, match=r"tokenizer.json must be there with transformers 5\."):
            load_tokenizer(tmp_path)
        return
    fast = load_tokenizer(tmp_path)
    assert isinstance(fast, FastTokenizer)
    assert differing(rows_alone, rows_of_gsm8k(fast, shared_data)) == []


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="MindSpore is not installed")
def test_mindspore_can_be_imported_after_a_tokenizer_that_protobuf_read(tmp_path: Path) -> None:
    """In a process of its own: MindSpore's messages refuse protobuf's faster implementation once it is in use."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True}))
    save_sentencepiece_model(tmp_path)
    program = (
        "import sys; from pathlib import Path; from twintune.converters.tokens import load_tokenizer; "
        "load_tokenizer(Path(sys.argv[1])); assert 'google.protobuf' in sys.modules; import mindspore"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def rows_of_gsm8k(tokenizer: Tokenizer, shared_data: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the first 2,000 records."""
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:2000]
    assert len(lines) == 2000
    template = load_template("vicuna_v1.1", tokenizer)
    rows = []
    for line in lines:
        record = json.loads(line)
        messages = (Message("human", record["question"]), Message("assistant", record["answer"]))
        row = make_row(template.segments(Conversation("x", messages)), tokenizer, True, 2048)
        rows.append((row.input_ids.tolist(), row.labels.tolist()))
    return rows


def differing(one: list[Any], other: list[Any]) -> list[int]:
    """Numbers of the rows that differ."""
    return [number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]


@pytest.mark.parametrize("text", ["How many clips?", "由题目可知：𠮷 🙂", "a\nb  c"])
@pytest.mark.parametrize("fixture", ["tiny_tokenizer_folder", "tiny_sentencepiece_folder", "tiny_fast_twin_folder"])
def test_decode_gives_the_text_back_without_special_tokens(
    request: pytest.FixtureRequest, fixture: str, text: str
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(fixture))
    ids = tokenizer.encode(text, add_special_tokens=True).ids.tolist()
    assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == text


def test_offsets_survive_a_normalizer_that_changes_the_text(tmp_path: Path) -> None:
    folder = save_sentencepiece_model(tmp_path, normalization_rule_name="nmt_nfkc")
    text = "１２ plus ㈠</s> ３"
    encoding = load_tokenizer(folder).encode(text, add_special_tokens=False)
    covered = {place for first, last in encoding.offsets for place in range(first, last)}
    assert {place for place, character in enumerate(text) if not character.isspace()} <= covered
    assert max(covered) < len(text)


def test_truncation_and_padding_saved_in_tokenizer_json_are_ignored(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    folder = save_chatml_tokenizer(tmp_path)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(folder / "tokenizer.json"))
    text = "How many clips did she sell altogether?"
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids.tolist()
    assert tokenizer.decode(ids) == text
    assert len(ids) < 64


def test_special_tokens_eos_and_vocabulary(tiny_tokenizer_folder: Path, tiny_sentencepiece_folder: Path) -> None:
    chatml, alone = load_tokenizer(tiny_tokenizer_folder), load_tokenizer(tiny_sentencepiece_folder)
    assert dict(chatml.special_tokens) == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert dict(alone.special_tokens) == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (chatml.eos_token_id, alone.eos_token_id) == (2, 2)
    assert (chatml.chat_template, alone.chat_template) == (CHATML, None)
    assert alone.vocab_size == 400


@pytest.mark.parametrize(
    ("tokens", "asked", "value", "reason"),
    [
        ({}, None, "<|endoftext|>", "the tokenizer's pad token"),
        ({"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}, None, "<|endoftext|>", "unk"),
        ({"pad_token": None, "unk_token": "<|endoftext|>"}, None, "<|endoftext|>", "unk"),
        ({}, "<|im_start|>", "<|im_start|>", "model.pad_token"),
    ],
)
def test_pad_is_chosen_once_with_its_reason(
    tmp_path: Path, tokens: dict[str, str], asked: str | None, value: str, reason: str
) -> None:
    tokenizer = load_tokenizer(save_chatml_tokenizer(tmp_path, **tokens), pad_token=asked)
    assert tokenizer.pad.value == value
    assert reason in tokenizer.pad.reason
    assert tokenizer.special_tokens[value] == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("tokens", "asked", "message"),
    [
        ({"pad_token": "<|im_end|>"}, None, r"pad or unk token other than bos and eos.*model\.pad_token"),
        ({"pad_token": None}, None, r"got pad None and unk None"),
        ({}, "<pad>", r"model\.pad_token must be a token.*got '<pad>'"),
        ({}, "<|im_end|>", r"model\.pad_token must be a token.*got '<\|im_end\|>'"),
        ({"eos_token": None}, None, r"must have an eos token.*tokenizer_config\.json"),
    ],
)
def test_unfit_tokens_are_refused(tmp_path: Path, tokens: dict[str, Any], asked: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(save_chatml_tokenizer(tmp_path, **tokens), pad_token=asked)


def test_folders_without_a_readable_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold a tokenizer .*got none"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"tokenizer\.model: the tokenizer must be a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"a tokenizer that transformers reads|tokenizer\.json must be there"):
        load_tokenizer(tmp_path)


def test_hash_changes_with_any_file(tmp_path: Path) -> None:
    folder = save_chatml_tokenizer(tmp_path)
    before = tokenizer_hash(folder)
    assert tokenizer_hash(folder) == before
    change_config(folder, model_max_length=7)
    assert tokenizer_hash(folder) != before


@pytest.mark.parametrize("fixture", ["tiny_tokenizer_folder", "tiny_sentencepiece_folder"])
def test_added_tokens_follow_the_largest_id_and_are_special(request: pytest.FixtureRequest, fixture: str) -> None:
    folder = request.getfixturevalue(fixture)
    plain = load_tokenizer(folder)
    tokenizer = load_tokenizer(folder, added_tokens=["<|new|>", "<PAD>", "</s>", "An"])
    known = "</s>" in plain.special_tokens
    expected = {"<|new|>": plain.vocab_size, "<PAD>": plain.vocab_size + 1}
    expected |= {"</s>": plain.special_tokens["</s>"]} if known else {"</s>": plain.vocab_size + 2}
    assert expected.items() <= tokenizer.special_tokens.items()
    ids = tokenizer.encode("a<|new|>b", add_special_tokens=False).ids.tolist()
    assert ids.count(plain.vocab_size) == 1
    assert tokenizer.decode(ids).replace(" ", "") == "ab"
    assert len(tokenizer.is_special) == tokenizer.vocab_size == 1 + max(tokenizer.special_tokens.values())


def test_an_added_token_that_is_empty_is_refused(tiny_tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.added_tokens must be texts that are not empty, got \['a', ' '\]"):
        load_tokenizer(tiny_tokenizer_folder, added_tokens=["a", " "])


@pytest.mark.parametrize("fixture", ["tiny_tokenizer_folder", "tiny_sentencepiece_folder", "tiny_fast_twin_folder"])
def test_workers_get_the_tokenizer_without_transformers(request: pytest.FixtureRequest, fixture: str) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(fixture))
    text = "USER: 由题目 </s><|im_end|>"
    own = tokenizer.encode(text, False, [])
    program = """
import pickle, sys
tokenizer = pickle.load(sys.stdin.buffer)
encodings = [tokenizer.encode(sys.argv[1], False, spans).ids.tolist() for spans in (None, [])]
print(*encodings, tokenizer.decode(encodings[0]), "transformers" in sys.modules, "torch" in sys.modules, sep="\\n")
"""
    command = [sys.executable, "-c", program, text]
    done = subprocess.run(command, input=pickle.dumps(tokenizer), capture_output=True, check=True)
    usual = tokenizer.encode(text, False).ids.tolist()
    expected = [str(usual), str(own.ids.tolist()), tokenizer.decode(usual), "False", "False"]
    assert done.stdout.decode().splitlines() == expected
    assert own.ids.tolist() != usual
