"""What a language model takes a latent to respond to: it is shown the latent's examples and its top tokens, and says one phrase.

A guess, kept beside one's own labels (``saes.tables``) with the model, the time and hashes of prompt and examples. The same model is not asked again about
the same examples by the same prompt; each explanation is written as it comes, so a killed run loses what was under way and no more.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from backend.judging.endpoint import Chat, Cost, Endpoint, NotHadError
from backend.judging.prompts import own_prompt
from backend.saes.tables import LABEL_LENGTH, Explanation, Tables

_STRONGEST = 10
_TOKENS_OF_A_REPLY = 250
_SAID = re.compile(r"^[\s*_#>-]*EXPLANATION[*_]*:[*_]*(.*)$", re.IGNORECASE | re.MULTILINE)
_REFUSED = re.compile(r"(I('m| am)? (can't|cannot|can not|unable|sorry|won't)|sorry\b|as an AI\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Case:
    """A latent to be explained."""

    latent: int
    prompt: str
    """Filled in."""

    examples_sha256: str
    n_examples: int

    def is_answered_by(self, said: Explanation | None, model: str) -> bool:
        """Whether this is what a model said of the same examples to the same prompt."""
        prompt = own_prompt("explain").sha256
        return said is not None and (said.model, said.prompt_sha256, said.examples_sha256) == (model, prompt, self.examples_sha256)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be asked, and what need not be."""

    cases: list[Case]
    explained: list[int]
    """Latents that this model explained before, from the same examples by the same prompt."""

    dead: list[int]
    """Latents without examples: active on no token."""

    @property
    def cost(self) -> Cost:
        return Cost.of([case.prompt for case in self.cases], len(self.cases) * _TOKENS_OF_A_REPLY)


def plan(tables: Tables, latents: Sequence[int], model: str) -> Plan:
    """Which of some latents a model is to be asked about.

    Raises:
        InputError: There is no such latent.
        ResultMissingError: The tables are missing or damaged.
    """
    found, before = Plan([], [], []), tables.explanations()
    for latent in dict.fromkeys(latents):
        row, windows = tables.one(latent), tables.examples(latent)
        case = case_of(row, windows) if windows else None
        if case is None:
            found.dead.append(latent)
        elif case.is_answered_by(before.get(latent), model):
            found.explained.append(latent)
        else:
            found.cases.append(case)
    return found


def case_of(row: dict[str, Any], windows: list[dict[str, Any]]) -> Case:
    """What to ask about a latent.

    Args:
        row: Of ``Tables.one``.
        windows: Of ``Tables.examples``; at least one.
    """
    largest = max(max(w["values"]) for w in windows)
    parts = {
        "examples": "\n".join(_shown(n, w, largest) for n, w in enumerate(windows, 1)),
        "raises": ", ".join(map(_quoted, row["raises"])),
        "lowers": ", ".join(map(_quoted, row["lowers"])),
    }
    prompt = re.sub(r"\{(examples|raises|lowers)\}", lambda place: parts[place[1]], own_prompt("explain").text)  # at once: braces in texts stay text
    return Case(row["latent"], prompt, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(), len(windows))


def explain(
    cases: Sequence[Case], tables: Tables, endpoint: Endpoint, *, on_progress: Callable[[int], None] = lambda n_done: None, stop: threading.Event | None = None
) -> dict[int, str]:
    """Ask about latents and keep what is said; why there is no explanation, for those of which there is none.

    Args:
        on_progress: Called with the number of latents that were asked about.

    Raises:
        JudgeError: Nobody can be asked, such as with a wrong key; what came before is kept.
        InputError, DiskError: Explanations cannot be kept.
    """
    chat, prompt = Chat(endpoint), own_prompt("explain").sha256
    missing = {case.latent: "not asked" for case in cases}
    n_done = 0

    async def ask(case: Case) -> tuple[str, str]:
        try:
            said, _ = await chat.ask(case.prompt, max_tokens=_TOKENS_OF_A_REPLY)
        except NotHadError as fault:
            return "", str(fault)
        return _read(said, chat)

    def keep(place: int, found: tuple[str, str]) -> None:
        nonlocal n_done
        case, (text, missing[case.latent]) = cases[place], found
        if text:
            said = Explanation(
                text=text, model=endpoint.model, prompt_sha256=prompt, examples_sha256=case.examples_sha256, n_examples=case.n_examples,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )  # fmt: skip
            tables.set_explanations({case.latent: said})
            del missing[case.latent]
        n_done += 1
        on_progress(n_done)

    chat.each(cases, ask, keep, stop or threading.Event())
    return missing


def parse(reply: str) -> str | None:
    """The phrase after the last ``EXPLANATION:``, in one line and without signs that cannot be shown; None where there is none, or no explanation."""
    said = _SAID.findall(reply)
    text = " ".join("".join(c for c in said[-1] if c.isprintable()).split()).strip("*_` ") if said else ""
    if quoted := re.fullmatch(r'"([^"]+)"|“([^”]+)”', text):
        text = quoted[1] or quoted[2]
    return None if not any(c.isalnum() for c in text) or _REFUSED.match(text) else text


def _read(reply: str, chat: Chat) -> tuple[str, str]:
    """An explanation, or why there is none."""
    text = parse(reply)
    if text is None:
        return "", f"no explanation in {chat.quoted(reply)}"
    if chat.holds_key(text):
        return "", "the reply holds the key"
    if text.strip(".").upper() == "UNCLEAR":
        return "", f"{chat.endpoint.model} sees nothing that its examples share"
    return (text, "") if len(text) <= LABEL_LENGTH else ("", f"the explanation is longer than {LABEL_LENGTH} characters")


def _shown(number: int, window: dict[str, Any], largest: float) -> str:
    """A text with its active stretches marked, and the strengths of their tokens."""
    strengths = [round(_STRONGEST * value / largest) for value in window["values"]]
    tokens = list(zip(window["texts"], strengths, strict=True))
    marked = ""
    for is_active, stretch in groupby(tokens, lambda token: token[1] > 0):
        text = "".join(token for token, _ in stretch)
        marked += f"<<{text}>>" if is_active else text
    active = ", ".join(f"{_quoted(token)} {strength}" for token, strength in tokens if strength)
    return f"{number}. {marked.replace(chr(10), ' ↵ ')}\n   {active}"


def _quoted(token: str) -> str:
    return json.dumps(token, ensure_ascii=False)
