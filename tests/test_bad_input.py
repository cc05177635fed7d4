"""Every bad input that a user can mend: exit code 2, a sentence that names the place, and nothing left behind."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_data import Case, cases, expected, make_corpus
from tests.smallest_recipe import RECORDS, write_json, write_smallest_recipe
from tests.tiny_tokenizers import save_chatml_tokenizer
from twintune import backends
from twintune.backends import has_npu, missing_packages
from twintune.cli import main

pytestmark = pytest.mark.once

GOOD = json.dumps(RECORDS[0], ensure_ascii=False)
COMMANDS = {
    "convert": ["convert", "data.json", "-o", "out"],
    "prepare": ["prepare", "recipe.yaml", "--output-dir", "out"],
    "train": ["train", "recipe.yaml", "--backend", "cuda", "--device", "cpu", "--output-dir", "out"],
}
needs_torch = pytest.mark.skipif(bool(missing_packages("cuda")), reason="trains with torch")


@pytest.fixture(scope="module")
def good_workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_smallest_recipe(folder, weights=False)
    return folder


@pytest.fixture
def workplace(good_workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The smallest recipe in the working folder, to be spoiled."""
    folder = tmp_path / "work"
    shutil.copytree(good_workplace, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TWINTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOG_v", "3")
    return folder


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the command line, which must refuse; its sentences."""
    before = everything_below(Path.cwd().parent)
    monkeypatch.setattr(sys, "argv", ["twintune", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    error = capfd.readouterr().err
    assert exit_.value.code == 2, error
    assert "Traceback" not in error
    assert everything_below(Path.cwd().parent) == before
    sentences = [line.removeprefix("twintune: ") for line in error.splitlines() if line.startswith("twintune: ")]
    assert sentences, error
    assert all(" must " in sentence and ", got" in sentence for sentence in sentences), sentences
    return sentences


def everything_below(folder: Path) -> set[Path]:
    """All files and folders but those of a cache that is whole."""
    return {path for path in folder.rglob("*") if "cache" not in path.parts or path.suffix == ".part"}


BAD_DATA: dict[str, tuple[str | bytes | None, str]] = {
    "malformed array": (f"[{GOOD},\n {{]", r"line 2, column 3: .* malformed JSON"),
    "malformed line": (f'{GOOD}\n{{"instruction": a}}\n', r"line 2, column 17: .* malformed JSON"),
    "no instruction": ('[{"input": "", "output": "b"}]', "row 1: instruction must be given, got only input, output"),
    "no output": (f'{GOOD}\n{{"instruction": "a"}}', "row 2: output must be given, got only instruction"),
    "number": ('[{"instruction": 5, "input": "", "output": "b"}]', "row 1: instruction must be a text, got 5"),
    "list": ('[{"instruction": "a", "input": [], "output": "b"}]', r"row 1: input must be a text, got \[\]"),
    "null": ('[{"instruction": "a", "input": "", "output": null}]', "row 1: output must be a text, got None"),
    "no object": (f'[{GOOD}, "text"]', "row 2: a record must be a JSON object, got 'text'"),
    "a mapping": ('{"data": []}', r"records must be of a known format \(.*\), got the keys data; set data\.format"),
    "empty output": ('[{"instruction": "a", "input": "", "output": " "}]', "row 1: output must not be empty, got ' '"),
    "empty file": ("", "the file must hold at least one record, got an empty file"),
    "no records": ("[]", "the file must hold at least one record, got none"),
    "not UTF-8": (b'[{"instruction": "\xe9"}]', "the data must be UTF-8 text, got byte 0xe9 at byte 18"),
    "no file": (None, "must be a file(, a folder or a glob| that exists), got nothing there"),
}


@pytest.mark.parametrize("command", ["convert", "prepare", pytest.param("train", marks=needs_torch)])
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    content, sentence = BAD_DATA[name]
    data = workplace / "data.json"
    data.unlink()
    if content is not None:
        data.write_bytes(content if isinstance(content, bytes) else content.encode())
    first = refused(COMMANDS[command], capfd, monkeypatch)[0]
    assert re.match(rf"\S*data\.json: .*{sentence}", first), first


def test_every_bad_record_is_told_at_once(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(workplace / "data.json", [RECORDS[0], {"instruction": 1, "output": ""}, {"output": "b"}])
    assert len(refused(COMMANDS["prepare"], capfd, monkeypatch)) == 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    folder = tmp_path_factory.mktemp("corpus")
    yield {case.name: case for case in cases(make_corpus(folder))}
    shutil.rmtree(folder)  # 300 MB


@pytest.mark.parametrize("name", expected())
def test_each_bad_file_and_record_is_one_line(
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    corpus: dict[str, Case],
    name: str,
) -> None:
    case = corpus[name]
    (sentence,) = refused([*COMMANDS["prepare"], f"data.train={json.dumps([case.entry])}"], capfd, monkeypatch)
    assert case.words in sentence


def answer_beyond_the_cut(workplace: Path) -> None:
    long = {"instruction": "题目：" * 300, "input": "", "output": "9"}
    write_json(workplace / "data.json", [*RECORDS, long])


def pad_in_the_text(workplace: Path) -> None:
    write_json(workplace / "data.json", [RECORDS[0], RECORDS[1] | {"output": "it is <unk>."}])


def tokenizer_without_eos(workplace: Path) -> None:
    (workplace / "tiny-llama" / "tokenizer.model").unlink()
    save_chatml_tokenizer(workplace / "tiny-llama", eos_token=None)


def no_tokenizer(workplace: Path) -> None:
    (workplace / "tiny-llama" / "tokenizer.model").unlink()


def torn_tokenizer(workplace: Path) -> None:
    (workplace / "tiny-llama" / "tokenizer.model").write_bytes(b"no model")


def unchanged(workplace: Path) -> None:
    pass


@pytest.mark.parametrize("command", ["prepare", pytest.param("train", marks=needs_torch)])
@pytest.mark.parametrize(
    ("spoil", "override", "sentence"),
    [
        (answer_beyond_the_cut, None, r"data\.json: row 13: at least one token must be trained, got none"),
        (
            pad_in_the_text,
            "data.split_special_tokens=false",
            r"data\.json: row 2: the pad token must not occur in a row, .* model\.pad_token",
        ),
        (unchanged, "model.pad_token=▁", r"data\.json: row 1: the pad token must not occur in a row"),
        (unchanged, "model.pad_token=nope", r"model\.pad_token must be a token of the tokenizer"),
        (tokenizer_without_eos, None, "the tokenizer must have an eos token, .* tokenizer_config.json"),
        (no_tokenizer, None, "must hold a tokenizer"),
        (torn_tokenizer, None, r"tokenizer\.model: the tokenizer must be a SentencePiece model"),
        (unchanged, "data.template=vicuna", r"data\.template: must be .*, got 'vicuna'; did you mean vicuna_v1.1"),
        (unchanged, "data.template=tokenizer", r"data\.template: 'tokenizer' must find a chat template"),
        (unchanged, "data.templte=x", r"recipe\.yaml: data\.templte must be .*; did you mean data\.template\?"),
        (unchanged, "data.cutoff_len=x", r"recipe\.yaml: data\.cutoff_len must be a valid integer"),
        (unchanged, "max_steps=3", "command line: an override must be section.key=value"),
        (unchanged, "model.name_or_path=./none", r"model\.name_or_path must be a folder, .*/none', which is not there"),
    ],
)
def test_bad_recipes(
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    override: str | None,
    sentence: str,
    command: str,
) -> None:
    spoil(workplace)
    arguments = COMMANDS[command] + ([override] if override else [])
    first = refused(arguments, capfd, monkeypatch)[0]
    assert re.search(sentence, first), first


@needs_torch
@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"model_type": "qwen3"}, "model_type must be one of"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type must be default, linear or llama3, got 'yarn'"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window must be null, got 64"),
        ({"vocab_size": 300}, "the tokenizer's ids must be below vocab_size 300"),
        ({"hidden_size": None}, "hidden_size must be a whole number"),
    ],
)
def test_models_that_would_be_computed_wrongly(
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    sentence: str,
) -> None:
    config = workplace / "tiny-llama" / "config.json"
    write_json(config, json.loads(config.read_text()) | keys)
    (told,) = refused(COMMANDS["train"], capfd, monkeypatch)
    assert "tiny-llama" in told
    assert sentence in told


@needs_torch
@pytest.mark.parametrize("spoil", ["missing", "torn"])
def test_weights_that_are_not_there(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    if spoil == "torn":
        (workplace / "tiny-llama" / "model.safetensors").write_bytes(b"torn")
    (told,) = refused(COMMANDS["train"], capfd, monkeypatch)
    assert "tiny-llama" in told


@pytest.mark.parametrize("command", ["prepare", pytest.param("train", marks=needs_torch)])
def test_a_folder_in_use_is_refused_and_kept(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "log.jsonl").write_text("{}\n")
    (told,) = refused(COMMANDS[command], capfd, monkeypatch)
    assert told.startswith("out: --output-dir must be a new or empty folder")
    assert (workplace / "out" / "log.jsonl").read_text() == "{}\n"


def test_no_output_folder(workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = refused(["train", "recipe.yaml"], capfd, monkeypatch)
    assert told.startswith("command line: --output-dir must be given")


@pytest.mark.parametrize("name", ["cuda", "ascend"])
def test_a_missing_extra(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    for arguments in (
        ["train", "recipe.yaml", "--backend", name, "--output-dir", "out"],
        ["generate", "--model", "tiny-llama", "--template", "none", "--backend", name, "--prompt", "a"],
    ):
        (told,) = refused(arguments, capfd, monkeypatch)
        assert f"pip install 'twintune[{name}]'" in told


def absent_devices() -> list[Any]:
    """Flags that ask for a device which is not here, or which the backend does not drive."""
    asked = []
    if not missing_packages("cuda"):
        from torch.cuda import is_available

        asked.append(("cuda", "npu", "--backend ascend"))
        if not is_available():
            asked.append(("cuda", "cuda", "--device cpu"))
    if not missing_packages("ascend"):
        asked.append(("ascend", "cuda", "--backend cuda"))
        if not has_npu():
            asked.append(("ascend", "npu", "--device cpu"))
    return asked


def test_a_device_that_is_not_there(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = absent_devices()
    assert asked
    for backend, device, remedy in asked:
        flags = ["--backend", backend, "--device", device]
        for arguments in (
            ["train", "recipe.yaml", *flags, "--output-dir", "out"],
            ["generate", "--model", "tiny-llama", "--template", "none", "--prompt", "a", *flags],
        ):
            (told,) = refused(arguments, capfd, monkeypatch)
            assert device in told
            assert remedy in told


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--prompt or --input must give a question, got none"),
        (["--input", "none.txt"], "none.txt: --input must be a readable UTF-8 file"),
        (["--prompt", "a", "--template", "nope"], r"data\.template: must be"),
        (["--prompt", "a"], "--template must be given for this model"),
        (["--prompt", "a", "--adapter", "none"], "none/adapter_config.json: --adapter must be a PEFT adapter folder"),
        (["--prompt", "a", "--template", "none", "--backend", "npu"], "--backend must be auto, cuda or ascend"),
        (
            ["--prompt", "a", "--template", "none", "--device", "tpu"],
            "--device must be one of auto, cpu, cuda, npu, got 'tpu'",
        ),
        (["--prompt", "a", "--template", "none", "--dtype", "int8"], "--dtype must be one of auto, "),
        (["--prompt", "a", "--top-p", "0"], r"generate\.top_p must be above 0 and at most 1, got 0"),
        (["--prompt", "a", "--num-return-sequences", "2"], r"generate\.num_return_sequences must be 1 for greedy"),
    ],
)
def test_bad_questions(
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    sentence: str,
) -> None:
    (told,) = refused(["generate", "--model", "tiny-llama", *flags], capfd, monkeypatch)
    assert re.search(sentence, told), told


@pytest.mark.skipif(bool(missing_packages("ascend")), reason="mindspore is not installed")
@pytest.mark.parametrize(("flag", "value"), [("--device", "tpu"), ("--dtype", "int8"), ("--dtype", "bfloat16")])
def test_bad_questions_to_ascend(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str, value: str
) -> None:
    flags = ["--backend", "ascend", "--prompt", "a", "--template", "none", flag, value]
    (told,) = refused(["generate", "--model", "tiny-llama", *flags], capfd, monkeypatch)
    assert value in told


def test_the_good_recipe_is_prepared(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused above is refused for its fault alone."""
    monkeypatch.setattr(sys, "argv", ["twintune", *COMMANDS["prepare"]])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    assert (workplace / "out" / "manifest.json").is_file()
