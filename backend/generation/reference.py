"""The reference decoder: transformers modules with forward hooks. Any architecture, any device; what others are held to.

Rows that start together decode in lockstep as one group, whatever their adapters: prompts are padded on the left, low-rank
changes are added unmerged to the rows they belong to, and a row that ends leaves. Rows that join later form a group of
their own, and groups take turns, a token each.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.generation.decoder import DecoderRow, RowState
from backend.generation.sampling import draw, make_generator
from backend.models import lora
from backend.models.adapters import Adapter

_SCORED_AT_ONCE = 512  # tokens whose logits are in memory together


class ReferenceDecoder:
    """A transformers causal language model."""

    name: ClassVar[str] = "reference"
    refills: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, *, stop_ids: frozenset[int], context_length: int) -> None:
        self.model = model
        self.stop_ids = stop_ids
        self.context_length = context_length
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.n_bytes = sum(p.nbytes for p in model.parameters())
        self.linear_shapes = lora.linear_shapes(model)

    def prepare(self, adapter: Adapter) -> Adapter:
        return adapter.to(self.model.device, self.model.dtype)

    def open_batch(self) -> "ReferenceBatch":
        return ReferenceBatch(self)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.get_decoder().layers


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that decode in lockstep."""

    states: list[RowState]
    generators: list[torch.Generator]
    ids: Tensor
    mask: Tensor
    positions: Tensor
    cache: Any = None


@dataclass(slots=True)
class ReferenceBatch:
    """Groups of rows that take turns."""

    decoder: ReferenceDecoder
    _waiting: list[RowState] = field(default_factory=list)
    _groups: list[_Group] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return False

    def add(self, row: DecoderRow) -> RowState:
        row.check(n_layers=len(self.decoder.layers), context_length=self.decoder.context_length)
        self._waiting.append(RowState(row))
        return self._waiting[-1]

    @torch.inference_mode()
    def remove(self, state: RowState) -> None:
        self._waiting = [s for s in self._waiting if s is not state]
        for group in self._groups:
            self._keep(group, [place for place, s in enumerate(group.states) if s is not state])
        self._groups = [g for g in self._groups if g.states]

    @torch.inference_mode()
    def step(self) -> list[RowState]:
        waiting, self._waiting = self._waiting, []
        read_only = [s for s in waiting if s.row.max_new_tokens == 0]
        for state in read_only:
            state.finish_reason = "length"
        if answered := [s for s in waiting if s.row.max_new_tokens > 0]:
            self._groups.append(self._open(answered))
        changed = [state for group in self._groups for state in self._advance(group)]
        self._groups = [g for g in self._groups if g.states]
        self._read([s for s in (*read_only, *changed) if s.finish_reason and (s.row.capture or s.row.score_from is not None)])
        return read_only + changed

    def _open(self, states: list[RowState]) -> _Group:
        states = _by_adapter(states)
        ids, mask = _pad([s.row.ids for s in states], left=True)
        device = self.decoder.model.device
        ids, mask = ids.to(device), mask.to(device)
        return _Group(states, [make_generator(s.row.seed) for s in states], ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))

    def _advance(self, group: _Group) -> list[RowState]:
        """One token for each row of the group."""
        rows = [s.row for s in group.states]
        with self._changed(group.states, group.positions, group.mask[:, -group.ids.shape[1] :]):
            output = self.decoder.model(
                input_ids=group.ids, attention_mask=group.mask, position_ids=group.positions, past_key_values=group.cache, use_cache=True, logits_to_keep=1
            )
        group.cache = output.past_key_values
        tokens, logprobs = draw(output.logits[:, -1], [row.temperature for row in rows], group.generators)
        changed = list(group.states)
        kept = []
        for place, (state, token, logprob) in enumerate(zip(changed, tokens, logprobs, strict=True)):
            if not math.isfinite(logprob):
                state.finish_reason = "overflow"
            else:
                state.finish_reason = state.take(token, logprob, stop_ids=self.decoder.stop_ids, context_length=self.decoder.context_length)
            if state.finish_reason is None:
                kept.append(place)
        self._keep(group, kept)
        group.ids = torch.tensor([[tokens[place]] for place in kept], device=group.mask.device)
        group.mask = torch.cat([group.mask, group.mask.new_ones(len(kept), 1)], dim=1)
        group.positions = group.positions[:, -1:] + 1
        return changed

    @staticmethod
    def _keep(group: _Group, places: list[int]) -> None:
        if len(places) == len(group.states):
            return
        index = torch.tensor(places, dtype=torch.long, device=group.mask.device)
        if group.cache is not None and places:
            group.cache.batch_select_indices(index)
        group.ids, group.mask, group.positions = group.ids[index], group.mask[index], group.positions[index]
        group.states = [group.states[place] for place in places]
        group.generators = [group.generators[place] for place in places]

    def _read(self, states: list[RowState]) -> None:
        """Scores and residuals of whole texts, in a pass without a cache."""
        if not states:
            return
        states = _by_adapter(states)
        rows = [s.row for s in states]
        texts = [s.row.ids + tuple(s.answer_ids) for s in states]
        ids, mask = _pad(texts, left=False)
        device = self.decoder.model.device
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._changed(states, positions, mask), self._captured({layer for row in rows for layer in row.capture}) as kept:
            hidden = self.decoder.model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for place, (state, text) in enumerate(zip(states, texts, strict=True)):
            state.residuals = {layer: kept[layer][place, : len(text)].cpu() for layer in state.row.capture}
            if (first := state.row.score_from) is not None and first < len(state.row.ids):
                state.score = self._score(hidden[place, first - 1 : len(state.row.ids) - 1], ids[place, first : len(state.row.ids)])
                state.finish_reason = state.finish_reason if math.isfinite(state.score) else "overflow"

    def _score(self, hidden: Tensor, targets: Tensor) -> float:
        """Sum of the targets' log-probabilities, nats."""
        head = self.decoder.model.get_output_embeddings()
        softcap = getattr(self.decoder.model.config.get_text_config(), "final_logit_softcapping", None)
        score = 0.0
        for chunk, wanted in zip(hidden.split(_SCORED_AT_ONCE), targets.split(_SCORED_AT_ONCE), strict=True):
            logits = head(chunk).float()
            if softcap:
                logits = torch.tanh(logits / softcap) * softcap
            score -= float(nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        return score

    @contextmanager
    def _changed(self, states: Sequence[RowState], positions: Tensor, mask: Tensor) -> Iterator[None]:
        """Adapters and interventions of the rows in effect, for the time of the block."""
        with ExitStack() as stack:
            stack.enter_context(lora.applied(self.decoder.model, _routes([s.row for s in states])))
            for layer in {i.layer for s in states for i in s.row.interventions}:
                handle = self.decoder.layers[layer].register_forward_hook(_intervene(layer, states, positions, mask.bool()))
                stack.callback(handle.remove)
            yield

    @contextmanager
    def _captured(self, layers: set[int]) -> Iterator[dict[int, Tensor]]:
        """Layer to its output, (rows, positions, d_model), of the pass inside the block."""
        kept: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:
                hook = self.decoder.layers[layer].register_forward_hook(lambda _m, _i, output, layer=layer: kept.__setitem__(layer, _hidden(output)))
                stack.callback(hook.remove)
            yield kept


def _hidden(output: Any) -> Tensor:
    """A decoder block's residual stream; some blocks return more beside it."""
    return output[0] if isinstance(output, tuple) else output


def _intervene(layer: int, states: Sequence[RowState], positions: Tensor, mask: Tensor) -> Any:
    """A forward hook that applies the rows' interventions at a layer to their real tokens."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = _hidden(output).clone()
        for row, state in enumerate(states):
            for place, intervention in enumerate(state.row.interventions):
                if intervention.layer != layer or not mask[row].any():
                    continue
                known = positions[row][mask[row]]
                wanted = intervention.tokens.of(int(known[0]), int(known[-1]) + 1, state.row.n_prompt)
                where = (mask[row] & (positions[row] >= wanted.start) & (positions[row] < wanted.stop)).to(hidden.device)
                if wanted:
                    hidden[row, where] = intervention.apply(hidden[row, where])
                    state.n_changed[place] += len(wanted)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def _by_adapter(states: Sequence[RowState]) -> list[RowState]:
    """Rows of one adapter together, in order of first appearance."""
    first: dict[int, int] = {}
    for i, state in enumerate(states):
        first.setdefault(id(state.row.adapter), i)
    return sorted(states, key=lambda s: first[id(s.row.adapter)])


def _routes(rows: Sequence[DecoderRow]) -> list[tuple[slice, Adapter]]:
    """Slices of rows that stand together and share an adapter."""
    routes: list[tuple[slice, Adapter]] = []
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place].adapter is not rows[start].adapter:
            if (adapter := rows[start].adapter) is not None:
                routes.append((slice(start, place), adapter))
            start = place
    return routes


def _pad(sequences: Sequence[tuple[int, ...]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids padded with 0 and the mask of real tokens, both (rows, longest)."""
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, place] = torch.tensor(sequence)
        mask[i, place] = 1
    return ids, mask
