"""One pass of a Llama-family model over pieces of any rows, laid end to end without padding.

A piece is some consecutive tokens of one row: a whole prompt, a part of one, or the one token of a decoding step. Linear
layers see all tokens at once; attention looks each piece's row up in the cache of keys and values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.errors import WeightsError
from backend.models.llama import FusedAdapter, LlamaShape, LlamaWeights, load_weights, read_shape
from backend.steering.interventions import Intervention

_SLOTS, _POSITIONS = 8, 128  # the cache grows by multiples


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Consecutive tokens of one row."""

    slot: int
    """The row's place in the cache."""

    start: int
    """Position of the first token; all before are in the cache."""

    ids: Sequence[int]
    adapter: FusedAdapter | None
    interventions: tuple[Intervention, ...] = ()
    n_prompt: int = 0
    capture: tuple[int, ...] = ()
    n_changed: list[int] = field(default_factory=list)
    """Tokens that each intervention has changed; counted up by the pass."""


class KeyValueCache:
    """Keys and values of all layers, (layers, slots, positions, keys then values). Grows and shrinks on demand; what is not
    written is zero and takes no memory."""

    def __init__(self, shape: LlamaShape, dtype: torch.dtype) -> None:
        self._shape = shape
        self._dtype = dtype
        self.values = self._zeros(0, 0)

    def fit(self, lengths: Sequence[int], n_positions: int) -> None:
        """Have room for rows of such a length, and not much more than twice as much.

        Args:
            lengths: Positions that each slot holds, in the slots' order; these are kept.
        """
        _, slots, positions, _ = self.values.shape
        wanted_slots, wanted_positions = -(-len(lengths) // _SLOTS) * _SLOTS, -(-n_positions // _POSITIONS) * _POSITIONS
        if len(lengths) <= slots and n_positions <= positions and slots * positions <= 2 * wanted_slots * wanted_positions:
            return
        old, self.values = self.values, self._zeros(wanted_slots, wanted_positions)
        for slot, n in enumerate(lengths):
            if n:
                self.values[:, slot, :n] = old[:, slot, :n]

    def _zeros(self, slots: int, positions: int) -> Tensor:
        """Through numpy, whose zeros the system hands out page by page when they are first written; torch writes them all."""
        sizes = (self._shape.n_layers, slots, positions, 2 * self._shape.kv_width)
        if not slots * positions:
            return torch.zeros(sizes, dtype=self._dtype)
        return torch.from_numpy(np.zeros(math.prod(sizes) * self._dtype.itemsize, np.uint8)).view(self._dtype).view(sizes)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        if n_positions:  # a row that was never fed may have no slot yet
            self.values[:, target, :n_positions] = self.values[:, source, :n_positions]

    def clear(self, slot: int, n_positions: int) -> None:
        """Zero a slot: what is masked is still multiplied, and must not be infinite."""
        if n_positions:
            self.values[:, slot, :n_positions] = 0


class LlamaForward:
    """The model as a function of pieces and a cache."""

    def __init__(self, weights: LlamaWeights) -> None:
        self.weights = weights
        self.shape = weights.shape
        self._frequencies = torch.tensor(weights.shape.inverse_frequencies)

    @classmethod
    @torch.inference_mode()
    def load(cls, folder: Path, dtype: torch.dtype, *, n_layers: int | None = None) -> Self:
        """Read a model in the Hub's format, all layers or the first ``n_layers``.

        Raises:
            WeightsError: It is damaged or of another kind.
        """
        shape = read_shape(folder)
        if shape is None:
            raise WeightsError(f"The model in {folder} is not of the Llama family.")
        return cls(load_weights(folder, shape if n_layers is None else replace(shape, n_layers=n_layers), dtype))

    def logits(self, residual: Tensor, adapters: Sequence[FusedAdapter | None]) -> Tensor:
        """(tokens, vocabulary) from the residual stream after the last layer, with the adapter of each token."""
        x = functional.rms_norm(residual, (self.shape.d_model,), self.weights.final_norm, self.shape.norm_epsilon)
        y = self.weights.head(x)
        for i, adapter in enumerate(adapters):
            if adapter is not None and adapter.head is not None:
                y[i] += x[i] @ adapter.head[0] @ adapter.head[1]
        return y

    def residuals(self, pieces: Sequence[Piece], cache: KeyValueCache, *, n_layers: int) -> tuple[Tensor, list[dict[int, Tensor]]]:
        """Run the first ``n_layers`` layers; keys and values go into the cache.

        Args:
            pieces: Those of one adapter must stand together; at most one a row.

        Returns:
            The residual stream after the last of these layers, (tokens, d_model), and what each piece wanted captured.
        """
        shape, eps = self.shape, self.shape.norm_epsilon
        layout = _Layout(pieces, cache, self._frequencies, shape)
        routes = _routes(pieces)
        changes = _changes(pieces, layout)
        captured: list[dict[int, Tensor]] = [{} for _ in pieces]
        hidden = functional.embedding(layout.ids, self.weights.embedding)
        for number in range(n_layers):
            layer = self.weights.layers[number]
            x = functional.rms_norm(hidden, (shape.d_model,), layer.attention_norm, eps)
            qkv = layer.projections["qkv"](x)
            _add_low_rank(qkv, x, routes, number, "qkv")
            layout.rotate(qkv)
            x = layout.attend(qkv, cache.values[number])
            hidden = layer.projections["o"](x, add=hidden)
            _add_low_rank(hidden, x, routes, number, "o")
            x = functional.rms_norm(hidden, (shape.d_model,), layer.mlp_norm, eps)
            both = layer.projections["gate_up"](x)
            _add_low_rank(both, x, routes, number, "gate_up")
            gate, up = both.split(shape.d_mlp, dim=-1)
            x = functional.silu(gate) * up
            hidden = layer.projections["down"](x, add=hidden)
            _add_low_rank(hidden, x, routes, number, "down")
            for change in changes.get(number, ()):
                hidden[change.tokens] = change.intervention.apply(hidden[change.tokens])
                for counts, place, n in change.counts:
                    counts[place] += n
            for i, piece in enumerate(pieces):
                if number in piece.capture:
                    captured[i][number] = hidden[layout.span(i)].clone()
        return hidden, captured


class _Layout:
    """Where the tokens of a pass are: in the pass, in their rows, in the cache."""

    def __init__(self, pieces: Sequence[Piece], cache: KeyValueCache, frequencies: Tensor, shape: LlamaShape) -> None:
        self._shape = shape
        self._pieces = pieces
        counts = [len(p.ids) for p in pieces]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self.ids = torch.tensor([i for p in pieces for i in p.ids])
        self.positions = torch.cat([torch.arange(p.start, p.start + n) for p, n in zip(pieces, counts, strict=True)])
        slots = torch.tensor([p.slot for p in pieces])
        self._places = slots.repeat_interleave(torch.tensor(counts)) * cache.values.shape[2] + self.positions
        angles = self.positions[:, None, None] * frequencies
        self._rotation = torch.polar(torch.ones_like(angles), angles)
        self._single = [i for i, n in enumerate(counts) if n == 1]
        self._several = [i for i, n in enumerate(counts) if n > 1]
        if self._single:
            self._plan_single(cache)

    def span(self, piece: int) -> slice:
        """Tokens of a piece in the pass."""
        return slice(self._starts[piece], self._starts[piece + 1])

    def rotate(self, qkv: Tensor) -> None:
        """Rotary embedding of queries and keys, in place (Su et al. 2021)."""
        shape = self._shape
        part = qkv[:, : shape.q_width + shape.kv_width]
        pairs = part.float().view(len(qkv), -1, shape.head_dim // 2, 2)
        turned = torch.view_as_complex(pairs).mul_(self._rotation)
        if qkv.dtype != torch.float32:
            part.copy_(torch.view_as_real(turned).view(part.shape))

    def attend(self, qkv: Tensor, cache: Tensor) -> Tensor:
        """Write keys and values into one layer's cache, (slots, positions, 2 kv_width), and attend; (tokens, q_width)."""
        shape = self._shape
        cache.view(-1, cache.shape[-1]).index_copy_(0, self._places, qkv[:, shape.q_width :])
        queries = qkv[:, : shape.q_width]
        if not self._several:
            return self._attend_single(queries, cache)
        out = queries.new_empty(queries.shape)
        if self._single:
            out[self._tokens] = self._attend_single(queries[self._tokens], cache)
        for i in self._several:
            piece, span = self._pieces[i], self.span(i)
            end = piece.start + len(piece.ids)
            keys, values = self._heads(cache[piece.slot : piece.slot + 1, :end])
            q = queries[span].view(1, -1, shape.n_heads, shape.head_dim).transpose(1, 2)
            mask = None if piece.start == 0 else torch.ones(len(piece.ids), end, dtype=torch.bool).tril(piece.start)
            y = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
            out[span] = y.transpose(1, 2).reshape(-1, shape.q_width)
        return out

    def _plan_single(self, cache: KeyValueCache) -> None:
        """Rows with one token attend together, in the order of their slots."""
        slots = [self._pieces[i].slot for i in self._single]
        lengths = torch.ones(max(slots) + 1, dtype=torch.long)
        lengths[slots] = torch.tensor([self._pieces[i].start + 1 for i in self._single])
        self._n_slots, self._longest = len(lengths), int(lengths.max())
        self._tokens = torch.tensor([self._starts[i] for i in self._single])
        self._slots = None if slots == list(range(len(slots))) else torch.tensor(slots)
        hidden = torch.arange(self._longest) >= lengths[:, None]
        self._mask = None
        if hidden.any():
            self._mask = torch.zeros(hidden.shape, dtype=cache.values.dtype).masked_fill_(hidden, float("-inf"))[:, None, None]

    def _attend_single(self, queries: Tensor, cache: Tensor) -> Tensor:
        shape = self._shape
        if self._slots is not None:
            queries = queries.new_zeros(self._n_slots, shape.q_width).index_copy_(0, self._slots, queries)
        q = queries.view(self._n_slots, shape.n_kv_heads, -1, shape.head_dim)  # heads that share keys stand as queries of one
        keys, values = self._heads(cache[: self._n_slots, : self._longest])
        out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask).reshape(self._n_slots, shape.q_width)
        return out if self._slots is None else out[self._slots]

    def _heads(self, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some slots and positions, each (slots, kv_heads, positions, head_dim)."""
        both = cache.unflatten(2, (2, self._shape.n_kv_heads, self._shape.head_dim))
        return both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)


def _routes(pieces: Sequence[Piece]) -> list[tuple[slice, FusedAdapter]]:
    """Spans of tokens that share an adapter."""
    routes = []
    start = 0
    for adapter, group in groupby(pieces, key=lambda p: p.adapter):
        n = sum(len(p.ids) for p in group)
        if adapter is not None:
            routes.append((slice(start, start + n), adapter))
        start += n
    return routes


def _add_low_rank(y: Tensor, x: Tensor, routes: list[tuple[slice, FusedAdapter]], layer: int, name: str) -> None:
    for tokens, adapter in routes:
        if (pair := adapter.layers[layer].get(name)) is not None:
            y[tokens].addmm_(x[tokens] @ pair[0], pair[1])


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """An intervention with the tokens of the pass that it changes."""

    intervention: Intervention
    tokens: Tensor
    counts: list[tuple[list[int], int, int]]
    """For each piece: its counts, the intervention's place among them, and how many of its tokens are changed."""


def _changes(pieces: Sequence[Piece], layout: _Layout) -> dict[int, list[_Change]]:
    """Layer to its interventions in their order, each with the tokens of all rows that want it at that place."""
    wanted: dict[tuple[int, Intervention], list[tuple[int, range]]] = {}
    for i, piece in enumerate(pieces):
        for place, intervention in enumerate(piece.interventions):
            if found := intervention.tokens.of(piece.start, piece.start + len(piece.ids), piece.n_prompt):
                wanted.setdefault((place, intervention), []).append((i, found))
    changes: dict[int, list[_Change]] = {}
    for (place, intervention), parts in sorted(wanted.items(), key=lambda item: item[0][0]):
        tokens = [torch.arange(found.start, found.stop) + (layout.span(i).start - pieces[i].start) for i, found in parts]
        counts = [(pieces[i].n_changed, place, len(found)) for i, found in parts]
        changes.setdefault(intervention.layer, []).append(_Change(intervention, torch.cat(tokens), counts))
    return changes
