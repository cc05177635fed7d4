"""An OpenAI-compatible endpoint: asked several questions at a time, and again where it gives no usable answer.

Retries wait by exponential back-off with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), or as Retry-After says.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from twintune.answer_sections import ReasoningSection
from twintune.errors import UserError

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


Keep = Callable[[int, str | Failure], None]


class _Unusable(Exception):
    """A request that may go better next time; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Unreachable(_Unusable):
    """A request that found nobody."""


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
        self._reached = False
        self._refusal: UserError | None = None  # of every question; those under way, which are paid for, still end

    def ask(self, prompts: Sequence[str], keep: Keep) -> None:
        """Ask every prompt; `keep` gets each answer with its prompt's number when it comes.

        Raises:
            UserError: if nobody is there, or the endpoint refuses in a way that would meet every question.
        """
        asyncio.run(self._ask_all(prompts, keep))
        if self._refusal is not None:
            raise self._refusal

    async def _ask_all(self, prompts: Sequence[str], keep: Keep) -> None:
        import httpx

        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = httpx.Limits(max_connections=self._concurrency)
        free = asyncio.Semaphore(self._concurrency)
        async with (
            httpx.AsyncClient(headers=headers, limits=limits, timeout=None) as client,  # noqa: S113  see _request
            asyncio.TaskGroup() as tasks,
        ):

            async def ask_one(number: int, prompt: str) -> None:
                try:
                    keep(number, await self._answer(client, prompt))
                except UserError as error:
                    self._refusal = error
                finally:
                    free.release()

            for number, prompt in enumerate(prompts):
                await free.acquire()
                if self._refusal is not None:
                    break
                tasks.create_task(ask_one(number, prompt))

    async def _answer(self, client: "httpx.AsyncClient", prompt: str) -> str | Failure:
        for tried in range(self._retries + 1):
            try:
                return await self._request(client, prompt)
            except _Refused as refused:
                return Failure(str(refused))
            except _Unusable as unusable:
                last = unusable
            if last.wait > LONGEST_RETRY_AFTER:
                return Failure(f"{last}; it asks to wait {last.wait:,.0f} s")
            if self._refusal is not None:
                return Failure(str(last))
            if tried < self._retries:
                jittered = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**tried))  # noqa: S311  no secret
                await asyncio.sleep(last.wait + jittered)
        if isinstance(last, _Unreachable) and not self._reached:
            raise UserError(f"{self._url}: the endpoint must be there, got {last}; check reasoning.base_url")
        return Failure(f"{last}; asked {self._retries + 1} times")

    async def _request(self, client: "httpx.AsyncClient", prompt: str) -> str:
        import httpx

        if not _is_unicode(prompt):
            raise _Refused("the prompt must be Unicode text, got half a surrogate pair")
        body = self._settings | {"messages": [{"role": "user", "content": prompt}]}
        try:
            async with asyncio.timeout(self._timeout), client.stream("POST", self._url, json=body) as response:
                self._reached = True
                content = await _read(response)
        except TimeoutError:
            raise _Unusable(f"no whole response within {self._timeout:g} s") from None
        except httpx.ConnectError as error:
            raise _Unreachable(f"ConnectError: {error}") from None
        except httpx.InvalidURL as error:
            raise UserError(f"reasoning.base_url must be an address, got {self._url}: {error}") from None
        except httpx.HTTPError as error:
            raise _Unusable(self._without_key(f"{type(error).__name__}: {error}")) from None
        if response.status_code != 200:
            self._refuse(response, content)
        return self._content_of(content)

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


async def _read(response: "httpx.Response") -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MOST_BYTES:
            raise _Unusable(f"a response of more than {MOST_BYTES:,} bytes")
    return bytes(content)


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
