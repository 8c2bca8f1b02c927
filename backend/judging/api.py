"""A language model as a judge, behind any OpenAI-compatible endpoint (``POST {url}/chat/completions``).

Address, model and key come from the environment: ``PERSONASCOPE_JUDGE_URL``, ``PERSONASCOPE_JUDGE_MODEL``, ``PERSONASCOPE_JUDGE_KEY``
(or ``OPENAI_API_KEY``). The key is sent, never stored, logged or shown. Scores are the probability-weighted mean over the first token where
the server gives log-probabilities, the parsed number where not; grades are parsed. A request is tried again, waiting longer
each time, after 408, 409, 429, 5xx, a broken connection, a cut or garbled reply; what fails for good leaves that one answer unscored.
A wrong key or an unknown model ends the run at once, said once.
"""

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from backend.errors import InputError, JudgeError
from backend.judging.parsing import expected_score, parse_grade, parse_score
from backend.judging.prompts import JudgePrompt, own_prompt
from backend.judging.verdicts import Exchange, JudgeAbout, Verdict

_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_TOP_LOGPROBS = 20
_TOKENS_OF_A_GRADE = 200
_REFUSED_AT_FIRST = 5
_RETRIED = {408, 409, 425, 429}
_CHARACTERS_PER_TOKEN = 4.0  # of English, roughly


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the judge is."""

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
    """What a run will ask of the endpoint, estimated before it starts."""

    n_requests: int
    input_tokens: int
    """From four characters a token."""

    output_tokens: int


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


class ApiJudge:
    """Scores (prompts ``aligned`` and ``coherent``) or grades (prompt ``grade``) by a language model."""

    def __init__(self, endpoint: Endpoint, prompts: Sequence[JudgePrompt] = ()) -> None:
        self._endpoint = endpoint
        self._prompts = tuple(prompts) or (own_prompt("aligned"), own_prompt("coherent"))
        self._gives_logprobs = True
        self._n_refused: int | None = 0
        """Requests refused before the first good reply; None after it."""

        said = hashlib.sha256("\0".join([endpoint.url, endpoint.model, *(p.sha256 for p in self._prompts)]).encode()).hexdigest()[:12]
        self.about = JudgeAbout(
            key=f"api-{said}",
            kind="api",
            title=endpoint.model,
            facts={"model": endpoint.model, "endpoint": endpoint.url, "prompts": {p.name: {"sha256": p.sha256, "source": p.source} for p in self._prompts}},
        )

    def estimate(self, exchanges: Sequence[Exchange]) -> Cost:
        """What judging these answers will ask for, without retries."""
        characters = sum(len(p.fill(e.question, e.answer)) for e in exchanges for p in self._prompts)
        output = sum(_TOKENS_OF_A_GRADE if p.name == "grade" else 1 for p in self._prompts) * len(exchanges)
        return Cost(len(exchanges) * len(self._prompts), round(characters / _CHARACTERS_PER_TOKEN), output)

    def judge(self, exchanges: Sequence[Exchange], on_verdict: Callable[[int, Verdict], None], stop: threading.Event) -> None:
        """See ``verdicts.Judge``.

        Raises:
            JudgeError: The key is wrong, the model or the address does not exist, or nothing answers there.
        """
        asyncio.run(self._judge_all(exchanges, on_verdict, stop))

    async def _judge_all(self, exchanges: Sequence[Exchange], on_verdict: Callable[[int, Verdict], None], stop: threading.Event) -> None:
        import httpx2 as httpx

        headers = {"Authorization": f"Bearer {self._endpoint.key}"} if self._endpoint.key else {}
        waiting = iter(enumerate(exchanges))
        begin = _Pace(self._endpoint.per_minute)
        async with httpx.AsyncClient(headers=headers, timeout=self._endpoint.timeout, trust_env=False) as client:

            async def work() -> None:
                for place, exchange in waiting:
                    if stop.is_set():
                        return
                    verdict = await self._verdict(client, begin, exchange)
                    if not stop.is_set():
                        on_verdict(place, verdict)

            tasks = [asyncio.create_task(work()) for _ in range(min(self._endpoint.concurrency, max(1, len(exchanges))))]
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

    async def _verdict(self, client: Any, begin: "_Pace", exchange: Exchange) -> Verdict:
        """One answer by all prompts; what could not be had or read is missing, with the reason."""
        found: dict[str, Any] = {}
        notes, is_partial = [], False
        for prompt in self._prompts:
            try:
                found[prompt.name], note = await self._ask(client, begin, prompt, exchange)
            except _NotHadError as fault:
                note, is_partial = str(fault), True
            notes += [f"{prompt.name}: {note}"] if note else []
        return Verdict(**found, note="; ".join(notes), is_partial=is_partial)

    async def _ask(self, client: Any, begin: "_Pace", prompt: JudgePrompt, exchange: Exchange) -> tuple[Any, str]:
        """A score or grade, and why it cannot be read.

        Raises:
            _NotHadError: No reply could be had.
        """
        is_grade = prompt.name == "grade"
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": prompt.fill(exchange.question, exchange.answer)}],
            "temperature": 0,
            "max_tokens": _TOKENS_OF_A_GRADE if is_grade else 8,
        }
        if not is_grade and self._gives_logprobs:
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        text, top = await self._post(client, begin, body)
        if is_grade:
            grade = parse_grade(text)
            return grade, "" if grade else f"no grade in {self._quoted(text)}"
        score = expected_score(top)
        score = parse_score(text) if score is None else score
        return score, "" if score is not None else f"no score in {self._quoted(text)}"

    async def _post(self, client: Any, begin: "_Pace", body: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
        """The reply's text with the likeliest first tokens.

        Raises:
            _NotHadError: It went wrong for good.
            JudgeError: Nothing answers, or every request so far was refused.
        """
        import httpx2 as httpx

        fault, without_logprobs = "", False
        for attempt in range(_TRIES):
            await begin.turn()
            wait = 0.0
            try:
                async with asyncio.timeout(self._endpoint.timeout):
                    reply = await client.post(f"{self._endpoint.url}/chat/completions", json=body)
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
                    raise _NotHadError(fault)
                wait = _seconds(reply.headers.get("retry-after"))
            except (httpx.ConnectError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                if attempt == _TRIES - 1:
                    raise JudgeError(f"Nothing answers at {self._endpoint.url}. Check PERSONASCOPE_JUDGE_URL and the network.") from error
            except TimeoutError:
                fault = f"no reply within {self._endpoint.timeout:g} seconds"
            except httpx.HTTPError as error:
                fault = f"the connection failed ({type(error).__name__})"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                fault = "the reply was no chat completion"
            if attempt < _TRIES - 1:
                await asyncio.sleep(max(wait, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.25)))
        raise _NotHadError(fault)

    def _quoted(self, text: str) -> str:
        """The beginning of a reply, for a note; the key, which some servers echo, taken out."""
        shown = text.replace(self._endpoint.key, "(the key)") if self._endpoint.key else text
        return repr(" ".join(shown.split())[:60])

    def _count_refusal(self, fault: str) -> None:
        """Raises: JudgeError, where the first requests are all refused: the others would be, too."""
        if self._n_refused is not None:
            self._n_refused += 1
            if self._n_refused >= _REFUSED_AT_FIRST:
                raise JudgeError(f"The judge at {self._endpoint.url} refuses every request ({fault}). Check model and address.")

    def _refuse(self, status: int) -> None:
        """Raises: JudgeError, for what no other request would mend."""
        if status in (401, 403):
            raise JudgeError(f"The judge at {self._endpoint.url} refused the key ({status}). Set PERSONASCOPE_JUDGE_KEY; what was judged before is kept.")
        if status == 404:
            raise JudgeError(
                f"There is no model {self._endpoint.model!r} at {self._endpoint.url}, or no chat completions (404). Check PERSONASCOPE_JUDGE_MODEL and _URL."
            )


class _NotHadError(Exception):
    """A reply could not be had; says why."""


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


def _read(reply: Any) -> tuple[str, list[tuple[str, float]]]:
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
