"""What every decoder is: a batch that rows join and leave at any step.

A row is a list of known ids and what is wanted of it: ids to be generated after them, the log-probability of some of them together,
the residual stream after some layers, or several of these. So answering, scoring and reading activations are one thing,
and share a pass wherever they meet.

- `reference`: transformers modules with hooks; any architecture, any device; what others are held to
- `fast`: Llama-family models on a processor
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from backend.errors import InputError
from backend.generation.records import FinishReason
from backend.models.adapters import Adapter
from backend.steering.interventions import Intervention


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecoderRow:
    """What a decoder needs of a row."""

    ids: tuple[int, ...]
    """Known ids, at least one: a prompt, or a prompt and its answer."""

    adapter: Any = None
    """As the decoder's ``prepare`` gave it; None for the base model."""

    interventions: tuple[Intervention, ...] = ()
    """Applied in this order after their layers."""

    capture: tuple[int, ...] = ()
    """Layers whose residual stream (after interventions there) is kept for each token."""

    score_from: int | None = None
    """Sum the log-probabilities of ``ids[score_from:]``."""

    max_new_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0

    prompt_length: int | None = None
    """Tokens of ``ids`` that are the prompt's, for interventions on prompt or answer alone; None is all."""

    @property
    def n_prompt(self) -> int:
        return len(self.ids) if self.prompt_length is None else self.prompt_length

    def check(self, *, n_layers: int, context_length: int) -> None:
        """Refuse a row that cannot be worked on.

        Raises:
            InputError: No ids, too many, or layers that the model does not have.
        """
        if not 0 < len(self.ids) <= context_length:
            raise InputError(f"A row has {len(self.ids)} tokens; this model reads 1 to {context_length}.")
        for layer in (*self.capture, *(i.layer for i in self.interventions)):
            if not 0 <= layer < n_layers:
                raise InputError(f"Layer {layer} is not in this model; it has layers 0 to {n_layers - 1}.")
        if self.score_from is not None and not 0 < self.score_from <= len(self.ids):
            raise InputError("The first token of a text has no probability; score from the second or later.")


@dataclass(slots=True, eq=False)
class RowState:
    """A row as far as it has come."""

    row: DecoderRow
    answer_ids: list[int] = field(default_factory=list)
    """Generated ids, the one that ends the answer included."""

    logprob: float = 0.0
    """Sum over ``answer_ids`` of their log-probability at temperature 1 under the row's own adapter and interventions, nats."""

    score: float = 0.0
    """Sum of log-probabilities of ``row.ids[row.score_from:]``, nats."""

    residuals: dict[int, Tensor] = field(default_factory=dict)
    """Layer to (n_tokens, d_model) for known and generated ids; there when the row has ended."""

    finish_reason: FinishReason | None = None

    n_changed: list[int] = field(init=False)
    """Tokens that each intervention of the row has changed."""

    def __post_init__(self) -> None:
        self.n_changed = [0] * len(self.row.interventions)

    def take(self, token: int, logprob: float, *, stop_ids: frozenset[int], context_length: int) -> FinishReason | None:
        """Append a token; the reason why the answer ends with it, None where it goes on."""
        self.answer_ids.append(token)
        self.logprob += logprob
        if token in stop_ids:
            return "stop"
        if len(self.answer_ids) >= self.row.max_new_tokens:
            return "length"
        if len(self.row.ids) + len(self.answer_ids) >= context_length:
            return "context"
        return None


class Batch(Protocol):
    """Rows that decode together. Used by one thread."""

    @property
    def is_full(self) -> bool:
        """Whether prompts that wait already fill the next pass; more would only wait longer."""

    def add(self, row: DecoderRow) -> RowState:
        """Take a row in; work on it begins with the next step."""

    def remove(self, state: RowState) -> None:
        """Drop a row that has not ended, and free what it holds."""

    def step(self) -> list[RowState]:
        """One pass of the model; the rows that got a token or ended. At most one new token a row."""


class Decoder(Protocol):
    """A model that rows can be sent to."""

    name: ClassVar[str]
    refills: ClassVar[bool]
    """Whether a row that joins a running batch shares its passes; where not, it costs passes of its own."""

    dtype: str
    n_bytes: int
    """Of the weights in memory."""

    linear_shapes: dict[str, tuple[int, int]]
    """Name of each module that an adapter can change to (out_features, in_features)."""

    def prepare(self, adapter: Adapter) -> Any:
        """An adapter in the form in which ``DecoderRow.adapter`` wants it."""

    def open_batch(self) -> Batch: ...


def decode(decoder: Decoder, rows: Sequence[DecoderRow]) -> list[RowState]:
    """Work on rows until all have ended."""
    batch = decoder.open_batch()
    states = [batch.add(row) for row in rows]
    while any(state.finish_reason is None for state in states):
        batch.step()
    return states
