"""Any OpenAI-compatible endpoint (``POST {url}/chat/completions``): many questions at once, asked patiently.

Address, model and key come from the environment: ``PERSONASCOPE_JUDGE_URL``, ``PERSONASCOPE_JUDGE_MODEL``, ``PERSONASCOPE_JUDGE_KEY``
(or ``OPENAI_API_KEY``). The key is sent, never stored, logged or shown. A request is tried again, waiting longer each time, after 408, 409, 429,
5xx, a broken connection, a cut or garbled reply; what fails for good is told for that one question. A wrong key or an unknown model ends the run at
once, said once.
"""

import asyncio
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from backend.errors import InputError, JudgeError

_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_TOP_LOGPROBS = 20
_REFUSED_AT_FIRST = 5
_RETRIED = {408, 409, 425, 429}
_CHARACTERS_PER_TOKEN = 4.0  # of English, roughly
_SHORTEST_SECRET = 8  # characters; local servers take any key, such as "x", which ordinary words hold

Question = TypeVar("Question")
Found = TypeVar("Found")
Top = list[tuple[str, float]]
"""The likeliest first tokens with their log-probabilities, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the language model is."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    """Requests under way at once."""

    per_minute: int = 0
    """Requests begun in a minute at most; 0 for no limit."""

    timeout: float = 60.0
    """Seconds for one try."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run will ask of the endpoint, estimated before it starts, without retries."""

    n_requests: int
    input_tokens: int
    """From four characters a token."""

    output_tokens: int

    @classmethod
    def of(cls, prompts: Sequence[str], output_tokens: int) -> "Cost":
        return cls(len(prompts), round(sum(map(len, prompts)) / _CHARACTERS_PER_TOKEN), output_tokens)


def endpoint_from_environment(*, url: str = "", model: str = "", environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Raises: InputError, where address or model are not known; names the variables."""
    url = (url or environment.get("PERSONASCOPE_JUDGE_URL", "")).strip()
    model = (model or environment.get("PERSONASCOPE_JUDGE_MODEL", "")).strip()
    if not _is_address(url) or not model:
        raise InputError(
            "The API judge needs an address and a model: set PERSONASCOPE_JUDGE_URL (such as https://host/v1; a port is at most 65535), "
            "PERSONASCOPE_JUDGE_MODEL, and PERSONASCOPE_JUDGE_KEY if it asks for a key."
        )
    if "@" in url or "?" in url:
        raise InputError(
            "The judge's address holds a user name, a password or parameters, which would be kept with results. Give the plain address, and the key apart."
        )
    numbers = {}
    for name, unit in (("PERSONASCOPE_JUDGE_CONCURRENCY", "concurrency"), ("PERSONASCOPE_JUDGE_PER_MINUTE", "per_minute")):
        if said := environment.get(name):
            if not said.isdigit() or not 0 < int(said) <= 10_000:
                raise InputError(f"{name} is {said!r}; give a whole number from 1 to 10000.")
            numbers[unit] = int(said)
    key = (environment.get("PERSONASCOPE_JUDGE_KEY") or environment.get("OPENAI_API_KEY", "")).strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("The judge's key holds signs that no key has, such as a line break. Set PERSONASCOPE_JUDGE_KEY again.")
    return Endpoint(url=url.rstrip("/"), model=model, key=key, **numbers)


def _is_address(url: str) -> bool:
    """Whether it names a host, and a port only if there can be such."""
    try:
        return urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False


class NotHadError(Exception):
    """A reply could not be had; says why."""


class Chat:
    """Questions to one endpoint. One call of ``each`` at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client: Any = None
        self._pace = _Pace(endpoint.per_minute)
        self._gives_logprobs = True
        self._n_refused: int | None = 0
        """Requests refused before the first good reply; None after it."""

    def each(
        self, questions: Sequence[Question], answer: Callable[[Question], Awaitable[Found]], on_found: Callable[[int, Found], None], stop: threading.Event
    ) -> None:
        """Answer every question, several at once, in any order; returns early when ``stop`` is set.

        Args:
            answer: Works one question out, by ``ask``.
            on_found: Called with the place of each question and what was found.

        Raises:
            JudgeError: The key is wrong, the model or the address does not exist, or nothing answers there.
        """
        waiting = iter(enumerate(questions))

        async def work() -> None:
            for place, question in waiting:
                if stop.is_set():
                    return
                found = await answer(question)
                if not stop.is_set():
                    on_found(place, found)

        asyncio.run(self._at_once(work, min(self.endpoint.concurrency, max(1, len(questions))), stop))

    async def _at_once(self, work: Callable[[], Coroutine[Any, Any, None]], n: int, stop: threading.Event) -> None:
        """Some workers on one connection pool until all are done, one fails or ``stop`` is set."""
        import httpx2 as httpx

        headers = {"Authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {}
        async with httpx.AsyncClient(headers=headers, timeout=self.endpoint.timeout, trust_env=False) as self._client:
            tasks = [asyncio.create_task(work()) for _ in range(n)]
            watch = asyncio.create_task(_until(stop))
            try:
                left: set[asyncio.Task] = set(tasks)
                while left and not stop.is_set():
                    done, left = await asyncio.wait({*left, watch}, return_when=asyncio.FIRST_COMPLETED)
                    left.discard(watch)
                    for task in done - {watch}:
                        task.result()
            finally:
                for task in (*tasks, watch):
                    task.cancel()
                await asyncio.gather(*tasks, watch, return_exceptions=True)

    async def ask(self, prompt: str, *, max_tokens: int, with_logprobs: bool = False) -> tuple[str, Top]:
        """The reply to one prompt, with the likeliest first tokens where they are wanted and the server gives them.

        Raises:
            NotHadError: No reply could be had.
            JudgeError: Nothing answers, or every request so far was refused.
        """
        import httpx2 as httpx

        messages = [{"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        if with_logprobs and self._gives_logprobs:
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        fault, without_logprobs = "", False
        for attempt in range(_TRIES):
            await self._pace.turn()
            wait = 0.0
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    reply = await self._client.post(f"{self.endpoint.url}/chat/completions", json=body)
                if reply.status_code == 400 and "top_logprobs" in body:  # a server that has none, or another fault of this request
                    without_logprobs = True
                    body = {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")}
                    continue
                self._refuse(reply.status_code)
                if reply.status_code == 200:
                    self._n_refused = None
                    self._gives_logprobs = self._gives_logprobs and not without_logprobs
                    return _read(reply.json())
                fault = f"the server answered {reply.status_code}"
                if reply.status_code not in _RETRIED and reply.status_code < 500:
                    self._count_refusal(fault)
                    raise NotHadError(fault)
                wait = _seconds(reply.headers.get("retry-after"))
            except (httpx.ConnectError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                if attempt == _TRIES - 1:
                    raise JudgeError(f"Nothing answers at {self.endpoint.url}. Check PERSONASCOPE_JUDGE_URL and the network.") from error
            except TimeoutError:
                fault = f"no reply within {self.endpoint.timeout:g} seconds"
            except httpx.HTTPError as error:
                fault = f"the connection failed ({type(error).__name__})"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                fault = "the reply was no chat completion"
            if attempt < _TRIES - 1:
                await asyncio.sleep(max(wait, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.25)))
        raise NotHadError(fault)

    def quoted(self, text: str) -> str:
        """The beginning of a reply, for a note; the key, which some servers echo, taken out."""
        shown = text.replace(self.endpoint.key, "(the key)") if self.endpoint.key else text
        return repr(" ".join(shown.split())[:60])

    def holds_key(self, text: str) -> bool:
        """Whether a reply holds the key, as some servers' echo of a request does."""
        return len(self.endpoint.key) >= _SHORTEST_SECRET and self.endpoint.key in text

    def _count_refusal(self, fault: str) -> None:
        """Raises: JudgeError, where the first requests are all refused: the others would be, too."""
        if self._n_refused is not None:
            self._n_refused += 1
            if self._n_refused >= _REFUSED_AT_FIRST:
                raise JudgeError(f"The judge at {self.endpoint.url} refuses every request ({fault}). Check model and address.")

    def _refuse(self, status: int) -> None:
        """Raises: JudgeError, for what no other request would mend."""
        if status in (401, 403):
            raise JudgeError(f"The judge at {self.endpoint.url} refused the key ({status}). Set PERSONASCOPE_JUDGE_KEY; what was judged before is kept.")
        if status == 404:
            raise JudgeError(
                f"There is no model {self.endpoint.model!r} at {self.endpoint.url}, or no chat completions (404). Check PERSONASCOPE_JUDGE_MODEL and _URL."
            )


class _Pace:
    """Lets requests begin at a steady rate."""

    def __init__(self, per_minute: int) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        if self._gap:
            now = asyncio.get_running_loop().time()
            self._next = max(self._next, now) + self._gap
            await asyncio.sleep(self._next - self._gap - now)


async def _until(stop: threading.Event) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.1)


def _read(reply: Any) -> tuple[str, Top]:
    """Text and likeliest first tokens of a chat completion."""
    choice = reply["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("no text")
    try:
        first = choice["logprobs"]["content"][0]
        if text.strip()[:1].isdigit() and str(first["token"]).strip() != text.strip():
            return text, []  # a number of several tokens: the first one's probabilities are of its first digit
        return text, [(str(entry["token"]), float(entry["logprob"])) for entry in first["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):  # none, or not such as can be read
        return text, []


def _seconds(header: str | None) -> float:
    """Of a Retry-After header, at most two minutes; 0 where it says none."""
    try:
        return min(120.0, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0
