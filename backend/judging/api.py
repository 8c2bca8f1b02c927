"""A language model as a judge, behind any OpenAI-compatible endpoint.

Scores are the probability-weighted mean over the first token where the server gives log-probabilities, the parsed number where not; grades are parsed.
What cannot be had or read leaves that one answer unscored, with the reason.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from backend.judging.endpoint import Chat, Cost, Endpoint, NotHadError
from backend.judging.parsing import expected_score, parse_grade, parse_score
from backend.judging.prompts import JudgePrompt, own_prompt
from backend.judging.verdicts import Exchange, JudgeAbout, Verdict

_TOKENS_OF_A_SCORE, _TOKENS_OF_A_GRADE = 8, 200


class ApiJudge:
    """Scores (prompts ``aligned`` and ``coherent``) or grades (prompt ``grade``) by a language model."""

    def __init__(self, endpoint: Endpoint, prompts: Sequence[JudgePrompt] = ()) -> None:
        self._chat = Chat(endpoint)
        self._prompts = tuple(prompts) or (own_prompt("aligned"), own_prompt("coherent"))
        said = hashlib.sha256("\0".join([endpoint.url, endpoint.model, *(p.sha256 for p in self._prompts)]).encode()).hexdigest()[:12]
        self.about = JudgeAbout(
            key=f"api-{said}",
            kind="api",
            title=endpoint.model,
            facts={"model": endpoint.model, "endpoint": endpoint.url, "prompts": {p.name: {"sha256": p.sha256, "source": p.source} for p in self._prompts}},
        )

    def estimate(self, exchanges: Sequence[Exchange]) -> Cost:
        """What judging these answers will ask for."""
        filled = [p.fill(e.question, e.answer) for e in exchanges for p in self._prompts]
        return Cost.of(filled, sum(_TOKENS_OF_A_GRADE if p.name == "grade" else 1 for p in self._prompts) * len(exchanges))

    def judge(self, exchanges: Sequence[Exchange], on_verdict: Callable[[int, Verdict], None], stop: threading.Event) -> None:
        """See ``verdicts.Judge``.

        Raises:
            JudgeError: The key is wrong, the model or the address does not exist, or nothing answers there.
        """
        self._chat.each(exchanges, self._verdict, on_verdict, stop)

    async def _verdict(self, exchange: Exchange) -> Verdict:
        """One answer by all prompts; what could not be had or read is missing, with the reason."""
        found: dict[str, Any] = {}
        notes, is_partial = [], False
        for prompt in self._prompts:
            try:
                found[prompt.name], note = await self._ask(prompt, exchange)
            except NotHadError as fault:
                note, is_partial = str(fault), True
            notes += [f"{prompt.name}: {note}"] if note else []
        return Verdict(**found, note="; ".join(notes), is_partial=is_partial)

    async def _ask(self, prompt: JudgePrompt, exchange: Exchange) -> tuple[Any, str]:
        """A score or grade, and why it cannot be read.

        Raises:
            NotHadError: No reply could be had.
        """
        is_grade = prompt.name == "grade"
        text, top = await self._chat.ask(
            prompt.fill(exchange.question, exchange.answer), max_tokens=_TOKENS_OF_A_GRADE if is_grade else _TOKENS_OF_A_SCORE, with_logprobs=not is_grade
        )
        if is_grade:
            grade = parse_grade(text)
            return grade, "" if grade else f"no grade in {self._chat.quoted(text)}"
        score = expected_score(top)
        score = parse_score(text) if score is None else score
        return score, "" if score is not None else f"no score in {self._chat.quoted(text)}"
