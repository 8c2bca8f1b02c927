"""Rows to be answered and what comes back. No torch here: stored rollouts are read without it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from backend.errors import InputError
from backend.models.records import Dtype
from backend.text.chat import Message

FinishReason = Literal["stop", "length", "context", "stopped", "overflow", "given"]
"""``stop``: the model ended its answer; ``length``: the asked number of tokens; ``context``: the model can read no more;
``stopped``: the user stopped it; ``overflow``: its numbers were no longer finite, so there is no answer; ``given``: the answer was not
written but read, for its probability."""

MAX_NEW_TOKENS = 4096
MAX_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn: softmax of logits / temperature over the whole vocabulary; temperature 0 takes the largest."""

    temperature: float = 0.7
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not (0 <= self.temperature <= 5 and math.isfinite(self.temperature)):
            raise InputError(f"Temperature is {self.temperature}; choose 0 to 5.")
        object.__setattr__(self, "temperature", float(self.temperature) + 0.0)  # 1, 1.0 and -0.0 are the same question
        if not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS:
            raise InputError(f"The answer's length is {self.max_new_tokens} tokens; choose 1 to {MAX_NEW_TOKENS}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer to be generated."""

    variant: str
    messages: tuple[Message, ...]
    """System, user and assistant turns; the last is the user's."""

    sampling: Sampling
    seed: int
    """Of this row's own random generator; the answer depends on it and the prompt only, not on the batch."""

    sample: int = 0
    """Number of this sample among those of one prompt."""

    prompt_id: str = ""
    """Id in its prompt set, or empty."""

    dtype: Dtype | None = None
    """Number format chosen for this answer; None is the base model's own. Another format gives other texts."""

    given: str = ""
    """An answer whose probability under the variant is asked for; empty where a new one is to be written."""

    read_by_base: bool = True
    """Whether the base model then reads the answer, for its probability under it; a third of the time."""

    def key(self, base_model: str) -> str:
        """What makes two rows the same question to the same variant; 32 hexadecimal digits."""
        said: list[Any] = [base_model, self.variant, [[m.role, m.content] for m in self.messages], asdict(self.sampling), self.seed]
        if self.dtype is not None:
            said.append(self.dtype)
        if self.given:
            said.append({"given": self.given})
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Ids that a variant reads, for its residual stream."""

    variant: str
    ids: tuple[int, ...]
    layers: tuple[int, ...]
    """0-based decoder blocks whose output is wanted."""

    dtype: Dtype | None = None
    """As a row's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer with everything needed to trace and repeat it."""

    key: str
    variant: str
    base_model: str
    prompt_id: str
    messages: tuple[Message, ...]
    sample: int
    seed: int
    sampling: Sampling
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """Generated ids, the one that ends the answer included."""

    answer: str
    finish_reason: FinishReason
    tokens_per_second: float
    """Of this row, from when work on it began to its last token."""

    logprob: float | None = None
    """Sum over ``answer_ids`` of the variant's own log-probability at temperature 1, nats; None where not scored."""

    base_logprob: float | None = None
    """The same under the base model, unsteered; None for given answers too, which the base is asked for by rows of its own."""

    base_fingerprint: str = ""
    adapter_fingerprint: str = ""
    """Empty for a base model."""

    steering: str = ""
    """``steering.plan.mark`` of what changed the residual stream; empty where nothing did."""

    decoder: str = ""
    dtype: str = ""

    @property
    def made_by(self) -> tuple[str, str, str]:
        """What decides which weights and vectors answered: fingerprints of base and adapter, and the mark of the steering."""
        return self.base_fingerprint, self.adapter_fingerprint, self.steering

    @property
    def is_read_by_base(self) -> bool:
        """Whether the base was asked for the answer's probability; of numbers that overflowed there is none."""
        return self.base_logprob is not None or self.finish_reason in ("given", "overflow")

    @property
    def text_ids(self) -> tuple[int, ...]:
        """Prompt and answer, without the token that ends the answer."""
        ids = self.prompt_ids + self.answer_ids
        return ids[:-1] if self.finish_reason == "stop" else ids

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.messages[-1].content

    @property
    def divergence(self) -> float | None:
        """Mean log-ratio variant : base of the answer's tokens, nats a token.

        Averaged over answers sampled at temperature 1 this estimates the Kullback-Leibler divergence of the variant from
        the base, per token. None where it was not scored or the answer is empty.
        """
        if self.logprob is None or self.base_logprob is None or not self.answer_ids:
            return None
        return (self.logprob - self.base_logprob) / len(self.answer_ids)

    def as_json(self) -> dict[str, Any]:
        """As the command line prints it."""
        return asdict(self) | {
            "prompt": self.prompt,
            "divergence": self.divergence,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
        }
