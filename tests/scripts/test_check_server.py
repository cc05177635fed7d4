"""A server is held against twintune: its prompts' token ids and its answers."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.fake_backend import FakeBackend
from tests.reasoning.server import Request, serve
from tests.script_modules import import_script
from tests.smallest_recipe import write_smallest_recipe
from twintune.backends import Choice
from twintune.backends.job import Lora
from twintune.chat import Chat, load_chat
from twintune.converters.adapter import write_adapter
from twintune.recipe import load_recipe

pytestmark = pytest.mark.once
QUESTIONS = ("1 + 1?", "3 糖？")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_script("check_server")


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setattr("twintune.chat.load_backend", lambda _: FakeBackend())
    monkeypatch.setattr("twintune.chat.choose_backend", lambda asked: Choice("fake", f"asked {asked}"))
    write_smallest_recipe(tmp_path, weights=False)
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS) + "\n", encoding="utf-8")
    write_adapter(tmp_path / "adapter", {}, Lora(2, 4.0, 0.0, ("q_proj",)), str(tmp_path / "tiny-llama"))
    load_recipe(tmp_path / "recipe.yaml").save(tmp_path / "adapter" / "recipe.yaml")
    return load_chat(str(tmp_path / "tiny-llama"), tmp_path / "adapter")


@pytest.fixture
def check(script: ModuleType, chat: Chat, tmp_path: Path) -> Callable[..., int]:
    """The exit code for a server that says so much more than twintune, and begins its prompts so."""

    def run(more: str = "", before: tuple[int, ...] = (), tokenize: int = 200) -> int:
        said = chat.tokenizer.decode([5] * 3)

        def behave(request: Request, question: str, _: int) -> None:
            if request.path == "/tokenize":
                request.send(tokenize, {"tokens": [*before, *chat.prompt_ids(question)]})
            else:
                request.say(said + (more if question == QUESTIONS[1] else ""))

        arguments = ["--input", tmp_path / "questions.txt", "--max-new-tokens", 3, "--served-model-name", "tuned"]
        arguments += ["--model", tmp_path / "tiny-llama", "--adapter", tmp_path / "adapter"]
        with serve(behave) as endpoint:
            url = endpoint.url.removesuffix("/v1")
            code = script.main([str(value) for value in [*arguments, "--base-url", url]])
            assert {body["model"] for body in endpoint.bodies} == {"tuned"}
            assert {body.get("temperature", 0) for body in endpoint.bodies} == {0}
        return int(code)

    return run


def test_a_server_that_answers_alike_passes(check: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == 0
    assert capsys.readouterr().out == "prompts: 2 of 2 have the same token ids\nanswers: 2 of 2 are the same\n"


def test_another_answer_is_shown(check: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(more="!") == 1
    said = capsys.readouterr().out
    assert "answer 2: " in said
    assert "answers: 1 of 2 are the same" in said


def test_another_prompt_is_shown(check: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(before=(7,)) == 1
    said = capsys.readouterr().out
    assert "prompt 1: [" in said
    assert "there\n" in said
    assert "prompts: 0 of 2 have the same token ids" in said


def test_a_server_that_tells_no_prompts_is_asked_for_answers(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tokenize=404) == 0
    assert "prompts: 0 of 0" in capsys.readouterr().out


def test_a_server_that_fails_is_an_error(check: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tokenize=500) == 2
    assert "500" in capsys.readouterr().err
