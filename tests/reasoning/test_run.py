"""`twintune reason` against an endpoint that behaves as endpoints do: no question is lost, none is paid for twice."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reasoning.server import Endpoint, Request, serve
from twintune.cli import main
from twintune.converters.formats import load_format
from twintune.converters.sources import Record, read_file

pytestmark = pytest.mark.once

SAMPLE = Path(__file__).parents[1] / "data" / "logic_contest.jsonl"
RECORDS = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
GOLD = {question["question"]: question["answer"] for record in RECORDS for question in record["questions"]}
QUESTIONS = len(GOLD)
BAD = "f(3) 等于多少?"  # the question that a test's endpoint treats badly
KEY = "sk-secret-of-the-tests"
RECIPE = """\
model: {name_or_path: ./nowhere}
data: {train: ./filled.jsonl, format: logic_contest}
reasoning:
  input: ./questions.jsonl
  model: some-model
  api_key_env: TEST_ENDPOINT_KEY
  prompt: "{{ question }}"
  max_retries: 2
  timeout: 5
"""


def right(request: Request, prompt: str, before: int) -> None:
    request.say(f"想一想{prompt}\n所以:\n答案是:{GOLD[prompt]}")


def badly(way: Callable[[Request], None], times: int = 99) -> Callable[[Request, str, int], None]:
    """The endpoint that treats the first requests for one question in a bad way."""

    def behave(request: Request, prompt: str, before: int) -> None:
        if prompt == BAD and before < times:
            way(request)
        else:
            right(request, prompt, before)

    return behave


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serve(right) as endpoint:
        yield endpoint


@pytest.fixture
def work(tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a recipe that names the endpoint."""
    monkeypatch.setattr("twintune.reasoning.endpoint.FIRST_WAIT", 0.01)
    for name, value in {"TWINTUNE_CACHE": str(tmp_path / "cache"), "TEST_ENDPOINT_KEY": KEY, "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "questions.jsonl").write_bytes(SAMPLE.read_bytes())
    (folder / "recipe.yaml").write_text(f"{RECIPE}  base_url: {endpoint.url}\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def reason(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `twintune reason recipe.yaml ARGUMENTS...`."""
    monkeypatch.setattr(sys, "argv", ["twintune", "reason", "recipe.yaml", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reasoned(path: Path) -> dict[str, str | None]:
    """The reasoning by question of a contest file."""
    return {one["question"]: one.get("reasoning") for record in lines_of(path) for one in record["questions"]}


def test_every_question_gets_its_reasoning(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason(monkeypatch, "reasoning.max_concurrency=3") == 0
    out = capsys.readouterr().out
    assert f"read {QUESTIONS} questions: filled {QUESTIONS}, failed 0" in out
    assert f"{QUESTIONS} were asked for, 0 came from the cache, 0 had a reasoning, 0 are kept without" in out
    assert reasoned(work / "filled.jsonl") == {question: f"想一想{question}\n所以:" for question in GOLD}
    filled = lines_of(work / "filled.jsonl")
    for record in filled:
        for question in record["questions"]:
            del question["reasoning"]
    assert filled == RECORDS  # in their order, with all their keys
    assert not (work / "filled.failed.jsonl").exists()
    assert endpoint.most <= 3
    body = endpoint.bodies[0]
    assert body.keys() == {"path", "model", "temperature", "max_tokens", "messages"}
    assert (body["path"], body["model"], body["temperature"]) == ("/v1/chat/completions", "some-model", 0.7)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in endpoint.headers)


def test_what_is_written_is_trained_as_reasoning_and_answer(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch) == 0
    path = work / "filled.jsonl"
    record = next(iter(read_file(path)))
    assert isinstance(record, Record)
    first, _ = load_format(path).conversations(record.value, "x")
    asked, told = (message.text for message in first.messages)
    assert asked.startswith("题目:\n书架上有三本书")
    assert asked.endswith("问题:\n哪一本书在最左边?\nA. 蓝书\nB. 红书\nC. 绿书")
    assert told == "想一想哪一本书在最左边?\n所以:\n答案是:B"


BAD_WAYS: dict[str, tuple[Callable[[Request], None], str]] = {
    "rubbish": (lambda request: request.send(200, b"\x00\xff<html>busy</html>"), "no chat completion: "),
    "broken JSON": (lambda request: request.send(200, b'{"choices": [{"mess'), "no chat completion: "),
    "other JSON": (lambda request: request.send(200, {"choices": []}), "no chat completion: "),
    "no text": (lambda request: request.say(""), "an answer without text"),
    "null": (lambda request: request.say(None), "an answer without text"),
    "half a character": (lambda request: request.say("\ud800"), "half a surrogate pair"),
    "nothing": (lambda request: request.send(200, b""), "no chat completion: "),
    "rate limit": (lambda request: request.send(429, {"error": "slow down"}), "status 429: "),
    "server error": (lambda request: request.send(503, b"busy"), "status 503: busy"),
    "dropped": (Request.drop, "RemoteProtocolError: "),
    "no HTTP": (Request.greet, "RemoteProtocolError: "),
    "false gzip": (lambda request: request.send(200, b"no gzip", Content_Encoding="gzip"), "DecodingError: "),
    "timeout": (Request.hang, "no whole response within 0.8 s"),
    "trickle": (Request.trickle, "no whole response within 0.8 s"),
}


HALVES = [dict(list(BAD_WAYS.items())[half::2]) for half in (0, 1)]


def each_badly(ways: dict[str, Any], times: int) -> Callable[[Request, str, int], None]:
    """The endpoint that treats the first requests for each of some questions in another bad way."""
    treated = dict(zip(GOLD, (way for way, _ in ways.values()), strict=False))

    def behave(request: Request, prompt: str, before: int) -> None:
        if prompt in treated and before < times:
            treated[prompt](request)
        else:
            right(request, prompt, before)

    return behave


@pytest.mark.parametrize("ways", HALVES, ids=" ".join)
def test_what_passes_is_asked_again(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, ways: dict[str, Any]
) -> None:
    endpoint.behave = each_badly(ways, times=2)
    assert reason(monkeypatch, "reasoning.timeout=0.8") == 0
    assert [endpoint.asked[question] for question in GOLD] == [3] * len(ways) + [1] * (QUESTIONS - len(ways))
    assert all(reasoned(work / "filled.jsonl").values())


@pytest.mark.parametrize("ways", HALVES, ids=" ".join)
def test_what_stays_bad_is_kept_with_its_reason_and_alone_asked_again(
    work: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ways: dict[str, Any],
) -> None:
    endpoint.behave = each_badly(ways, times=99)
    bad = list(GOLD)[: len(ways)]
    assert reason(monkeypatch, "reasoning.timeout=0.8") == 1
    assert f"read {QUESTIONS} questions: filled {QUESTIONS - len(bad)}, failed {len(bad)}" in capsys.readouterr().out
    failures = lines_of(work / "filled.failed.jsonl")
    assert [failure["record"]["questions"][0]["question"] for failure in failures] == bad
    for failure, (_, words) in zip(failures, ways.values(), strict=True):
        assert words in failure["reason"]
        assert failure["reason"].endswith("; asked 3 times")
        record = RECORDS[failure["row"] - 1]
        assert failure["record"] == record | {"questions": [record["questions"][failure["question"] - 1]]}
    assert reasoned(work / "filled.jsonl").keys() == GOLD.keys() - set(bad)
    before = endpoint.asked.copy()
    endpoint.behave = right
    assert reason(monkeypatch) == 0
    assert endpoint.asked - before == dict.fromkeys(bad, 1)
    assert f"{len(bad)} were asked for, {QUESTIONS - len(bad)} came from the cache" in capsys.readouterr().out
    assert reasoned(work / "filled.jsonl").keys() == GOLD.keys()
    assert not (work / "filled.failed.jsonl").exists()


def test_a_refusal_of_one_question_is_not_asked_again(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.behave = badly(lambda request: request.send(400, {"error": "context length"}))
    assert reason(monkeypatch) == 1
    assert endpoint.asked[BAD] == 1
    (failure,) = lines_of(work / "filled.failed.jsonl")
    assert failure["reason"] == 'status 400: {"error": "context length"}'


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the key in the variable that reasoning.api_key_env names"),
        (402, "the credit of the account"),
        (404, "reasoning.base_url and reasoning.model"),
        (301, "reasoning.base_url"),
    ],
)
def test_what_would_meet_every_question_ends_the_run_and_loses_no_answer(
    work: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    words: str,
) -> None:
    endpoint.behave = badly(lambda request: request.send(status, f"no, {KEY}".encode(), Location="/elsewhere"))
    assert reason(monkeypatch, "reasoning.max_concurrency=1") == 2
    error = capsys.readouterr().err
    assert (
        f"chat/completions: the endpoint must accept the request, got status {status}: no, ***; check {words}" in error
    )
    assert not (work / "filled.jsonl").exists()
    before = endpoint.asked.copy()
    endpoint.behave = right
    assert reason(monkeypatch) == 0
    answered = {question for question in before if question != BAD}
    assert answered
    assert not answered & (endpoint.asked - before).keys()


def test_retry_after_is_waited_for(work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("twintune.reasoning.endpoint.asyncio.sleep", sleep)
    endpoint.behave = badly(lambda request: request.send(429, b"later", Retry_After="7"), times=2)
    assert reason(monkeypatch) == 0
    assert [7 <= seconds <= 7.02 for seconds in waited] == [True, True]


def test_a_retry_after_of_hours_is_not_waited_for(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.behave = badly(lambda request: request.send(429, b"tomorrow", Retry_After="Wed, 21 Oct 2099 07:28:00 GMT"))
    assert reason(monkeypatch) == 1
    assert endpoint.asked[BAD] == 1
    (failure,) = lines_of(work / "filled.failed.jsonl")
    assert failure["reason"].startswith("status 429: tomorrow; it asks to wait ")


def test_an_endpoint_that_is_not_there_is_told(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(right) as gone:
        pass
    assert reason(monkeypatch, f"reasoning.base_url={gone.url}", "reasoning.max_retries=1") == 2
    error = capsys.readouterr().err
    assert f"{gone.url}/chat/completions: the endpoint must be there, got ConnectError: " in error
    assert not (work / "filled.jsonl").exists()


def test_an_endpoint_that_goes_down_fails_the_rest(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(request: Request, prompt: str, before: int) -> None:
        right(request, prompt, before)
        if len(falling.asked) == 3:
            request.go_down()

    with serve(behave) as falling:
        overrides = [f"reasoning.base_url={falling.url}", "reasoning.max_retries=1", "reasoning.max_concurrency=1"]
        assert reason(monkeypatch, *overrides) == 1
    assert f"filled 3, failed {QUESTIONS - 3}" in capsys.readouterr().out
    failures = lines_of(work / "filled.failed.jsonl")
    assert [failure["record"]["questions"][0]["question"] for failure in failures] == list(GOLD)[3:]
    assert all("ConnectError" in failure["reason"] for failure in failures)


def test_an_answer_that_misses_the_gold_one_is_asked_again(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.behave = badly(lambda request: request.say("想错了。\n答案是:A"), times=2)
    assert reason(monkeypatch, "reasoning.max_attempts=3") == 0
    assert endpoint.asked[BAD] == 3
    assert reasoned(work / "filled.jsonl")[BAD] == f"想一想{BAD}\n所以:"


def test_an_answer_that_never_meets_the_gold_one_is_refused_or_kept_without(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.behave = badly(lambda request: request.say("想错了。\n答案是:A"))
    assert reason(monkeypatch, "reasoning.max_attempts=2") == 1
    assert endpoint.asked[BAD] == 2
    (failure,) = lines_of(work / "filled.failed.jsonl")
    assert failure["reason"] == (
        "none of 2 answers has a reasoning that ends in the gold answer C; the last one ends in '答案是:A'"
    )
    lenient = ["reasoning.max_attempts=2", "reasoning.require_gold=false"]
    assert reason(monkeypatch, *lenient) == 0
    assert endpoint.asked[BAD] == 2  # what was paid for says enough
    assert "1 are kept without: no answer ended in the gold one" in capsys.readouterr().out
    filled = reasoned(work / "filled.jsonl")
    assert filled.keys() == GOLD.keys()
    assert filled[BAD] is None


def test_a_reasoning_that_is_there_is_kept_and_not_asked_for(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads(json.dumps(RECORDS))
    records[0]["questions"][0]["analysis"] = "由左到右。"
    (work / "questions.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert reason(monkeypatch) == 0
    assert "1 had a reasoning" in capsys.readouterr().out
    assert records[0]["questions"][0]["question"] not in endpoint.asked
    assert lines_of(work / "filled.jsonl")[0]["questions"][0]["analysis"] == "由左到右。"


def test_records_that_break_a_rule_are_told_and_counted(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (work / "questions.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(
            '{"problem": "p", "questions": [{"question": "q", "options": ["a"], "answer": "B"}]}\n{"problem"\n'
        )
    assert reason(monkeypatch) == 1
    assert f"read {QUESTIONS + 2} questions: filled {QUESTIONS}, failed 2" in capsys.readouterr().out
    first, second = lines_of(work / "filled.failed.jsonl")
    assert (first["row"], first["reason"]) == (5, "question 1: answer must be one of A, got 'B'")
    assert second["row"] == 6
    assert "malformed JSON" in second["reason"]


def test_the_key_is_in_no_file_and_no_output(
    work: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.behave = badly(lambda request: request.send(400, f"what is {KEY}?".encode()))
    assert reason(monkeypatch) == 1
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err
    files = [path for path in work.parent.rglob("*") if path.is_file()]
    assert any(path.name == "filled.failed.jsonl" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_killed_run_goes_on_where_it_was(work: Path, endpoint: Endpoint) -> None:
    """Killed while the third request is under way, it asks for all but the two it had an answer for."""
    reached = threading.Event()

    def behave(request: Request, prompt: str, before: int) -> None:
        if len(endpoint.asked) <= 2:
            right(request, prompt, before)
        else:
            reached.set()
            request.hang()

    endpoint.behave = behave
    command = [sys.executable, "-m", "twintune", "reason", "recipe.yaml", "reasoning.max_concurrency=1"]
    with subprocess.Popen(command, cwd=work) as process:
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
    assert not list(work.glob("filled*"))
    (cache,) = (work.parent / "cache" / "reasoning").glob("*.jsonl")
    with cache.open("a") as stream:
        stream.write('{"key": "half')  # as if it had been killed while writing
    before = endpoint.asked.copy()
    endpoint.behave = right
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True, env=os.environ)
    assert f"{cache}: the last line is half-written" in done.stderr
    assert (endpoint.asked - before).total() == QUESTIONS - 2
    assert f"{QUESTIONS - 2} were asked for, 2 came from the cache" in done.stdout
    assert reasoned(work / "filled.jsonl").keys() == GOLD.keys()
    assert len(lines_of(cache)) == QUESTIONS
