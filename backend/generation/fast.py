"""The fast decoder: Llama-family models on a processor. Same interface as the reference, and the reference's tokens.

Each step is one pass over the next token of every row that decodes and over as many waiting tokens of prompts and texts as
a small allowance lets in, short ones first, so a newcomer starts at once and nobody waits long for others' prompts.
Rows that start with the same ids under the same weights share that beginning: it is worked out once and copied.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from backend.generation.decoder import DecoderRow, RowState
from backend.generation.llama_forward import KeyValueCache, LlamaForward, Piece
from backend.generation.records import FinishReason
from backend.generation.sampling import draw, make_generator
from backend.models.adapters import Adapter
from backend.models.llama import FusedAdapter, fuse_adapter, read_shape

WAITING_TOKENS = 128  # fed beside decoding rows in one step: a tenth of a second or two on two cores
_ALONE = 4  # times as many where no row wants an answer: the weights are read from memory once a step, whatever the number of tokens
WORTH_SHARING = 8  # tokens


class FastDecoder:
    """A Llama-family model with a static cache of keys and values."""

    name: ClassVar[str] = "fast"
    refills: ClassVar[bool] = True

    def __init__(self, forward: LlamaForward, *, stop_ids: frozenset[int], context_length: int) -> None:
        self._forward = forward
        self._stop_ids = stop_ids
        self._context_length = context_length
        self.dtype = str(forward.weights.dtype).removeprefix("torch.")
        self.n_bytes = forward.weights.n_bytes
        self.linear_shapes = forward.shape.linear_shapes()

    @staticmethod
    def can_load(folder: Path) -> bool:
        """Whether the model in a folder is of a kind that this decoder knows."""
        return read_shape(folder) is not None

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, stop_ids: frozenset[int], context_length: int) -> Self:
        """Read a model in the Hub's format.

        Raises:
            WeightsError: It is damaged or of another kind.
        """
        return cls(LlamaForward.load(folder, dtype), stop_ids=stop_ids, context_length=context_length)

    def prepare(self, adapter: Adapter) -> FusedAdapter:
        return fuse_adapter(adapter, self._forward.shape, self._forward.weights.dtype)

    def open_batch(self) -> "FastBatch":
        return FastBatch(self._forward, self._stop_ids, self._context_length)


@dataclass(slots=True, eq=False)
class _Live:
    """A row in the batch; its slot in the cache is its place in the batch's list."""

    state: RowState
    ids: list[int]
    """Known and generated so far."""

    generator: torch.Generator
    arrival: int

    n_layers: int
    """Layers the row needs."""

    captured: dict[int, list[Tensor]]
    reason: FinishReason | None
    """Why nothing more is to be generated; None while something is."""

    fed: int = 0
    """Tokens in the cache."""

    waits: bool = False
    """For another row, to copy what both begin with."""

    @property
    def row(self) -> DecoderRow:
        return self.state.row

    @property
    def n_to_feed(self) -> int:
        """Tokens to be fed before the next decision; after the last id of a text nothing is asked unless it is captured."""
        return len(self.ids) - self.fed - (1 if self.reason and not self.row.capture else 0)

    @property
    def is_decoding(self) -> bool:
        return self.fed > 0 and self.n_to_feed == 1


class FastBatch:
    """Rows in lockstep."""

    def __init__(self, forward: LlamaForward, stop_ids: frozenset[int], context_length: int) -> None:
        self._forward = forward
        self._stop_ids = stop_ids
        self._context_length = context_length
        self._rows: list[_Live] = []
        self._n_added = 0
        self._cache = KeyValueCache(forward.shape, forward.weights.dtype)

    def add(self, row: DecoderRow) -> RowState:
        n_layers = self._forward.shape.n_layers
        row.check(n_layers=n_layers, context_length=self._context_length)
        is_read_only = row.max_new_tokens == 0
        if is_read_only and row.score_from is None:
            n_layers = max((*row.capture, *(i.layer for i in row.interventions)), default=-1) + 1
        captured: dict[int, list[Tensor]] = {layer: [] for layer in row.capture}
        self._rows.append(_Live(RowState(row), list(row.ids), make_generator(row.seed), self._n_added, n_layers, captured, "length" if is_read_only else None))
        self._n_added += 1
        return self._rows[-1].state

    @property
    def is_full(self) -> bool:
        unfed = {(id(live.row.adapter), live.row.ids) for live in self._rows if not (live.fed or live.waits) and live.row.max_new_tokens}
        return sum(len(ids) for _, ids in unfed) >= WAITING_TOKENS

    @torch.inference_mode()
    def remove(self, state: RowState) -> None:
        slot = next((s for s, live in enumerate(self._rows) if live.state is state), None)
        if slot is not None:
            self._release(slot)

    @torch.inference_mode()
    def step(self) -> list[RowState]:
        self._cache.fit([live.fed for live in self._rows], max((len(live.ids) for live in self._rows), default=0))
        self._share()
        plan = self._plan()
        changed = self._feed(plan) if plan else []
        if any(live.reason and live.n_to_feed <= 0 for live in self._rows):
            self._share()  # rows that only read leave with the step that reads them, and what others wait for with them
        for slot in reversed(range(len(self._rows))):
            live = self._rows[slot]
            if live.reason and live.n_to_feed <= 0:
                self._finish(live)
                self._release(slot)
                if live.state not in changed:
                    changed.append(live.state)
        return changed

    def _share(self) -> None:
        """Copy beginnings that another row has worked out already; wait for one that is at it."""
        for slot, live in enumerate(self._rows):
            if live.fed or live.row.capture:
                continue
            others = [(o, s, _in_common(o, live)) for s, o in enumerate(self._rows) if o is not live and (o.fed or o.arrival < live.arrival)]
            now, source = max(((min(n, other.fed), s) for other, s, n in others), default=(0, 0))
            later = max((n for _, _, n in others), default=0)
            live.waits = later >= now + WORTH_SHARING
            if now >= WORTH_SHARING and not live.waits:
                self._cache.copy(source, slot, now)
                live.fed = now
                live.state.n_changed = list(self._rows[source].state.n_changed)

    def _plan(self) -> list[tuple[int, _Live, int]]:
        """What is fed in this step: slot, row and number of tokens; rows of one adapter stand together."""
        slots = list(enumerate(self._rows))
        plan = [(slot, live, 1) for slot, live in slots if live.is_decoding]
        waiting = [(slot, live) for slot, live in slots if live.n_to_feed > 0 and not (live.waits or live.is_decoding)]
        room = WAITING_TOKENS * (1 if any(live.row.max_new_tokens for live in self._rows) else _ALONE)
        plan += [(slot, live, n) for (slot, live), n in zip(waiting, _divide([live for _, live in waiting], room), strict=True) if n]
        return sorted(plan, key=lambda item: (id(item[1].row.adapter), item[0]))

    def _feed(self, plan: list[tuple[int, _Live, int]]) -> list[RowState]:
        """One pass; scores and new tokens of the logits where they are wanted."""
        pieces = [
            Piece(
                slot, live.fed, live.ids[live.fed : live.fed + n], live.row.adapter, live.row.interventions, live.row.n_prompt, live.row.capture,
                live.state.n_changed,
            )
            for slot, live, n in plan
        ]  # fmt: skip
        hidden, captured = self._forward.residuals(pieces, self._cache, n_layers=max(live.n_layers for _, live, _ in plan))
        wanted: list[int] = []
        scoring: list[tuple[_Live, int, list[int]]] = []
        drawing: list[tuple[_Live, int]] = []
        first = 0
        for (_slot, live, n), kept in zip(plan, captured, strict=True):
            for layer, residual in kept.items():
                live.captured[layer].append(residual)
            begin, live.fed = live.fed, live.fed + n
            scored = range(max(begin, _first_logits(live.row)), min(live.fed, len(live.row.ids) - 1))
            if scored:
                scoring.append((live, len(wanted), [live.ids[place + 1] for place in scored]))
                wanted += [first + place - begin for place in scored]
            if live.n_to_feed == 0 and live.reason is None:
                drawing.append((live, len(wanted)))
                wanted.append(first + n - 1)
            first += n
        if not wanted:
            return []
        owners = [live.row.adapter for _, live, n in plan for _ in range(n)]
        logits = self._forward.logits(hidden[wanted], [owners[i] for i in wanted])
        for live, at, targets in scoring:
            live.state.score -= float(functional.cross_entropy(logits[at : at + len(targets)].float(), torch.tensor(targets), reduction="sum"))
        if drawing:
            self._draw([live for live, _ in drawing], logits[[at for _, at in drawing]])
        return [live.state for live, _ in drawing]

    def _draw(self, rows: list[_Live], logits: Tensor) -> None:
        tokens, logprobs = draw(logits, [live.row.temperature for live in rows], [live.generator for live in rows])
        for live, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if math.isfinite(logprob):
                live.ids.append(token)
                live.reason = live.state.take(token, logprob, stop_ids=self._stop_ids, context_length=self._context_length)
            else:
                live.reason = "overflow"

    def _finish(self, live: _Live) -> None:
        state = live.state
        state.finish_reason = live.reason if math.isfinite(state.score) else "overflow"
        state.residuals = {layer: torch.cat(parts) for layer, parts in live.captured.items()}

    def _release(self, slot: int) -> None:
        """Take a row out; the last one moves into its slot."""
        self._cache.clear(slot, self._rows[slot].fed)
        last = self._rows.pop()
        if slot < len(self._rows):
            self._cache.copy(len(self._rows), slot, last.fed)
            self._cache.clear(len(self._rows), last.fed)
            self._rows[slot] = last
        if not self._rows:
            self._cache = KeyValueCache(self._forward.shape, self._forward.weights.dtype)


def _divide(waiting: list[_Live], room: int) -> list[int]:
    """Tokens of each waiting row for one pass: half of the room for who waits longest, so that nobody starves, the rest for
    short remainders first, so that a short question does not wait for somebody's long text."""
    if not waiting:
        return []
    longest = min(range(len(waiting)), key=lambda i: waiting[i].arrival)
    shares = [0] * len(waiting)
    shares[longest] = min(room // 2, waiting[longest].n_to_feed)
    room -= shares[longest]
    for i in sorted(range(len(waiting)), key=lambda i: (waiting[i].row.max_new_tokens == 0, waiting[i].n_to_feed)):
        more = min(room, waiting[i].n_to_feed - shares[i])
        shares[i] += more
        room -= more
    return shares


def _first_logits(row: DecoderRow) -> int:
    """First position whose logits the row's score needs; the row's length where it needs none."""
    return len(row.ids) if row.score_from is None else row.score_from - 1


def _in_common(source: _Live, live: _Live) -> int:
    """Tokens that both begin with under the same weights, as far as ``live`` need not feed them itself."""
    if source.row.adapter is not live.row.adapter or source.row.interventions != live.row.interventions or source.n_layers < live.n_layers:
        return 0
    if live.row.interventions and (source.row.ids != live.row.ids or source.row.n_prompt != live.row.n_prompt):
        return 0  # what they do may depend on where the prompt ends
    limit = min(len(source.ids), len(live.ids) - 1, _first_logits(live.row))
    return next((n for n in range(limit) if source.ids[n] != live.ids[n]), limit)
