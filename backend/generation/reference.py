"""The reference decoder: transformers modules with forward hooks. Any architecture, any device; what others are held to.

Rows of any mix of base and adapters decode in lockstep in one batch: prompts are padded on the left, low-rank changes are
added unmerged to the rows they belong to, and a row that ends leaves the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.generation.records import FinishReason
from backend.generation.sampling import draw, make_generator
from backend.models import lora
from backend.models.adapters import Adapter

_SCORED_AT_ONCE = 512  # tokens whose logits are in memory together


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRow:
    """What a decoder needs of a row."""

    prompt_ids: tuple[int, ...]
    adapter: Adapter | None
    temperature: float
    max_new_tokens: int
    seed: int


class ReferenceDecoder:
    """Decodes and scores with a transformers causal language model."""

    name = "reference"

    def __init__(self, model: PreTrainedModel, *, stop_ids: frozenset[int], context_length: int) -> None:
        self._model = model
        self._stop_ids = stop_ids
        self._context_length = context_length

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def decode(
        self, rows: Sequence[DecoderRow], *, on_token: Callable[[int, int], None], on_end: Callable[[int, FinishReason], None], should_stop: Callable[[], bool]
    ) -> None:
        """Generate one answer a row.

        Args:
            on_token: Called with the row's index and the new id.
            on_end: Called with the row's index when it ends.
            should_stop: Asked before each token; when true, all rows that run end as ``stopped``.
        """
        live = _by_adapter([row.adapter for row in rows])
        generators = {i: make_generator(rows[i].seed) for i in live}
        counts = dict.fromkeys(live, 0)
        ids, mask = _pad([rows[i].prompt_ids for i in live], left=True)
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = None
        while live:
            if should_stop():
                for i in live:
                    on_end(i, "stopped")
                return
            with lora.applied(self._model, _routes([rows[i].adapter for i in live])):
                output = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            tokens = draw(output.logits[:, -1], [rows[i].temperature for i in live], [generators[i] for i in live])
            kept = []
            for place, (i, token) in enumerate(zip(live, tokens, strict=True)):
                on_token(i, token)
                counts[i] += 1
                if (reason := self._ended(rows[i], token, counts[i])) is not None:
                    on_end(i, reason)
                else:
                    kept.append(place)
            if len(kept) < len(live):
                if not kept:
                    return
                index = torch.tensor(kept, device=mask.device)
                cache.batch_select_indices(index)
                mask, positions = mask[index], positions[index]
                live = [live[place] for place in kept]
            ids = torch.tensor([[tokens[place]] for place in kept], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
            positions = positions[:, -1:] + 1

    @torch.inference_mode()
    def score(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]], adapters: Sequence[Adapter | None]) -> list[float]:
        """Log-probability of each answer after its prompt at temperature 1, summed over the answer's tokens, in nats."""
        order = _by_adapter(adapters)
        ids, mask = _pad([prompts[i] + answers[i] for i in order], left=False)
        is_answer = torch.zeros_like(mask, dtype=torch.bool)
        for place, i in enumerate(order):
            is_answer[place, len(prompts[i]) : len(prompts[i]) + len(answers[i])] = True
        device = self._model.device
        with lora.applied(self._model, _routes([adapters[i] for i in order])):
            hidden = self._model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
        scores = [0.0] * len(prompts)
        head = self._model.get_output_embeddings()
        softcap = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        for place, i in enumerate(order):
            wanted = is_answer[place, 1:]
            if not wanted.any():
                continue
            states = hidden[place, :-1][wanted.to(device)]
            targets = ids[place, 1:][wanted].to(device)
            for chunk, wanted_ids in zip(states.split(_SCORED_AT_ONCE), targets.split(_SCORED_AT_ONCE), strict=True):
                logits = head(chunk).float()
                if softcap:
                    logits = torch.tanh(logits / softcap) * softcap
                scores[i] -= float(nn.functional.cross_entropy(logits, wanted_ids, reduction="sum"))
        return scores

    def _ended(self, row: DecoderRow, token: int, count: int) -> FinishReason | None:
        if token in self._stop_ids:
            return "stop"
        if count >= row.max_new_tokens:
            return "length"
        if len(row.prompt_ids) + count >= self._context_length:
            return "context"
        return None


def _by_adapter(adapters: Sequence[Adapter | None]) -> list[int]:
    """Indices of rows so that those of one adapter stand together, in order of first appearance."""
    first: dict[int, int] = {}
    for i, adapter in enumerate(adapters):
        first.setdefault(id(adapter), i)
    return sorted(range(len(adapters)), key=lambda i: first[id(adapters[i])])


def _routes(adapters: Sequence[Adapter | None]) -> list[tuple[slice, Adapter]]:
    """Slices of rows that stand together and share an adapter."""
    routes: list[tuple[slice, Adapter]] = []
    start = 0
    for place in range(1, len(adapters) + 1):
        if place == len(adapters) or adapters[place] is not adapters[start]:
            if (adapter := adapters[start]) is not None:
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
