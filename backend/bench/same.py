"""Whether the fast decoder gives the reference's tokens: row by row, with near ties of the reference told apart.

A row that parts from the reference does so fairly only where the reference's own decision, noise of sampling included, was
made by less than ``TIE``: there another batch of the reference itself can fall the other way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backend.generation.decoder import Decoder, DecoderRow, decode
from backend.generation.reference import ReferenceDecoder
from backend.generation.sampling import make_generator

TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Sameness:
    """Rows of the fast decoder beside the reference's."""

    n_rows: int
    n_ties: int
    """Rows that part at a decision that the reference makes by less than ``TIE``."""

    different: tuple[int, ...]
    """Indices of rows that part elsewhere."""


def answers(decoder: Decoder, rows: Sequence[DecoderRow], at_once: int = 64) -> list[list[int]]:
    """Generated ids of rows, so many in a batch."""
    return [s.answer_ids for start in range(0, len(rows), at_once) for s in decode(decoder, rows[start : start + at_once])]


def compare(reference: ReferenceDecoder, rows: Sequence[DecoderRow], expected: Sequence[list[int]], found: Sequence[list[int]]) -> Sameness:
    """Hold answers to the reference's.

    Args:
        rows: As the reference wants them; where an answer parts, its decision there is worked out once more.
    """
    n_ties, different = 0, []
    for i, (row, a, b) in enumerate(zip(rows, expected, found, strict=True)):
        if a == b:
            continue
        same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        if _margin(reference, row, a[:same]) < TIE:
            n_ties += 1
        else:
            different.append(i)
    return Sameness(len(rows), n_ties, tuple(different))


def _margin(reference: ReferenceDecoder, row: DecoderRow, answer: Sequence[int]) -> float:
    """By how much the reference prefers its token after ``answer`` to the second best, noise included."""
    batch = reference.open_batch()
    batch.add(DecoderRow(ids=row.ids + tuple(answer), prompt_length=row.n_prompt, adapter=row.adapter, interventions=row.interventions, max_new_tokens=1))
    seen: list[torch.Tensor] = []
    handle = reference.model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.logits[0, -1].float()))
    try:
        batch.step()
    finally:
        handle.remove()
    scores = seen[0].double()
    if row.temperature > 0:
        generator = make_generator(row.seed)
        for _ in range(len(answer) + 1):
            uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64).clamp_(min=1e-300)
        scores = scores / row.temperature - (-uniform.log()).log()
    best = scores.topk(2).values
    return float(best[0] - best[1])
