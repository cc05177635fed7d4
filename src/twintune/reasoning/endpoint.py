"""An OpenAI-compatible endpoint: asked several questions at a time, and again where it gives no usable answer.

Retries wait by exponential back-off with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), or as Retry-After says.
"""

import json
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING, Any

from twintune.errors import UserError
from twintune.recipe import ReasoningSection

if TYPE_CHECKING:
    import httpx

FIRST_WAIT = 1.0  # seconds before the first retry, at most; doubled for each
LONGEST_WAIT = 60.0
LONGEST_RETRY_AFTER = 600.0  # what asks for more is not waited for
MOST_BYTES = 16 * 2**20  # of a response: no answer is that long
SHOWN = 200  # characters of a response in a message
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
# The same for every question: a wrong key or address, no credit. Asking on would fail them all.
HOPELESS = {
    401: "the key in the variable that reasoning.api_key_env names",
    402: "the credit of the account",
    403: "the rights of the key in the variable that reasoning.api_key_env names",
    404: "reasoning.base_url and reasoning.model",
    405: "reasoning.base_url",
}


@dataclass(frozen=True)
class Failure:
    """Why a question got no answer."""

    reason: str


class _Unusable(Exception):
    """A request that may go better next time; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(Exception):
    """A request that will never go better."""


class Endpoint:
    """Answers from `BASE_URL/chat/completions`.

    Args:
        base_url: such as https://api.openai.com/v1.
        settings: of the request's body: model, temperature, max_tokens.
        key: sent as a bearer token, and written nowhere; None sends none.
        concurrency: requests under way at a time.
        retries: of a request that got no usable answer.
        timeout: seconds of one request, to the last byte of its response.
    """

    def __init__(
        self,
        base_url: str,
        settings: dict[str, Any],
        *,
        key: str | None,
        concurrency: int,
        retries: int,
        timeout: float,
    ) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._settings = settings
        self._key = key
        self._concurrency = concurrency
        self._retries = retries
        self._timeout = timeout
        self._stop = Event()

    def answers(self, prompts: Sequence[str]) -> Iterator[tuple[int, str | Failure]]:
        """The answer to each prompt with the prompt's number, as they come.

        Raises:
            UserError: if the endpoint refuses in a way that would meet every question.
        """
        import httpx

        self._stop = Event()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = httpx.Limits(max_connections=self._concurrency)
        with (
            httpx.Client(headers=headers, timeout=self._timeout, limits=limits) as client,
            ThreadPoolExecutor(self._concurrency) as pool,
        ):
            numbers = {pool.submit(self._answer, client, prompt): number for number, prompt in enumerate(prompts)}
            try:
                yield from self._completed(numbers)
            finally:  # after Ctrl-C, and for a caller that stops: nothing more is to be asked
                self._end(numbers)

    def _completed(self, numbers: dict[Future[str | Failure], int]) -> Iterator[tuple[int, str | Failure]]:
        """What is answered, as it comes; after a refusal of all, what was under way, which is paid for too."""
        refusal: UserError | None = None
        for future in as_completed(numbers):
            if future.cancelled():
                continue
            try:
                yield numbers[future], future.result()
            except UserError as error:
                refusal = error
                self._end(numbers)
        if refusal is not None:
            raise refusal

    def _end(self, futures: Iterable[Future[str | Failure]]) -> None:
        self._stop.set()
        for future in futures:
            future.cancel()

    def _answer(self, client: "httpx.Client", prompt: str) -> str | Failure:
        tried = 0
        while True:
            try:
                return self._request(client, prompt)
            except _Refused as refused:
                return Failure(str(refused))
            except _Unusable as unusable:
                reason, asked_wait = str(unusable), unusable.wait
            if asked_wait > LONGEST_RETRY_AFTER:
                return Failure(f"{reason}; it asks to wait {asked_wait:,.0f} s")
            if tried == self._retries:
                return Failure(f"{reason}; asked {tried + 1} times")
            jittered = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**tried))  # noqa: S311  no secret
            if self._stop.wait(asked_wait + jittered):
                return Failure("stopped")
            tried += 1

    def _request(self, client: "httpx.Client", prompt: str) -> str:
        import httpx

        if not _is_unicode(prompt):
            raise _Refused("the prompt must be Unicode text, got half a surrogate pair")
        body = self._settings | {"messages": [{"role": "user", "content": prompt}]}
        ends = time.monotonic() + self._timeout
        try:
            with client.stream("POST", self._url, json=body) as response:
                content = self._read(response, ends)
        except httpx.TimeoutException:
            raise _Unusable(f"no response within {self._timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Unusable(self._without_key(f"{type(error).__name__}: {error}")) from None
        if response.status_code != 200:
            self._refuse(response, content)
        return self._content_of(content)

    def _read(self, response: "httpx.Response", ends: float) -> bytes:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MOST_BYTES:
                raise _Unusable(f"a response of more than {MOST_BYTES:,} bytes")
            if time.monotonic() > ends:  # httpx counts the seconds between two bytes
                raise _Unusable(f"no whole response within {self._timeout:g} s")
        return bytes(content)

    def _refuse(self, response: "httpx.Response", content: bytes) -> None:
        status = response.status_code
        reason = f"status {status}: {self._shown(content)}"
        if status in RETRIED:
            raise _Unusable(reason, _retry_after(response.headers.get("Retry-After")))
        if status in HOPELESS or response.is_redirect:
            what = HOPELESS.get(status, "reasoning.base_url")
            raise UserError(f"{self._url}: the endpoint must accept the request, got {reason}; check {what}")
        raise _Refused(reason)

    def _content_of(self, content: bytes) -> str:
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Unusable(f"no chat completion: {self._shown(content)}") from None
        if not isinstance(text, str) or not text.strip():
            raise _Unusable("an answer without text")
        if not _is_unicode(text):
            raise _Unusable("an answer with half a surrogate pair")
        return text

    def _shown(self, content: bytes) -> str:
        return self._without_key(" ".join(content.decode(errors="replace").split()))[:SHOWN]

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "***")  # some endpoints repeat it


def open_endpoint(section: ReasoningSection, base_url: str) -> Endpoint:
    """The endpoint that a recipe names.

    Raises:
        UserError: if the environment does not hold its key.
    """
    return Endpoint(
        base_url,
        {"model": section.model, "temperature": section.temperature, "max_tokens": section.max_new_tokens},
        key=_key(section.api_key_env),
        concurrency=section.max_concurrency,
        retries=section.max_retries,
        timeout=section.timeout,
    )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        got = "something else" if key else "nothing"
        raise UserError(f"environment: {variable} must hold the key that reasoning.api_key_env names, got {got}")
    return key


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON's escapes may spell what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 for none and for rubbish."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
