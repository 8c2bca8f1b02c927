"""Drawing the next token of each row with the row's own random generator."""

from collections.abc import Sequence

import torch
from torch import Tensor


def make_generator(seed: int) -> torch.Generator:
    """A generator for one row; torch uses 32 bits of the seed."""
    return torch.Generator().manual_seed(seed % 2**32)


def draw(logits: Tensor, temperatures: Sequence[float], generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row: largest of ``logits / temperature`` plus Gumbel noise (a draw from the softmax).

    The Gumbel form makes a sampled decision as robust as a greedy one: only where the best two are closer than numerical
    noise can another batch change it.

    Args:
        logits: (rows, vocabulary).
        temperatures: One a row; 0 is greedy.
    """
    scores = logits.to("cpu", torch.float32, copy=True)
    for i, (temperature, generator) in enumerate(zip(temperatures, generators, strict=True)):
        if temperature > 0:
            uniform = torch.rand(scores.shape[1], generator=generator, dtype=torch.float64).clamp_(min=1e-300)
            scores[i] = (scores[i].double() / temperature - (-uniform.log()).log()).float()
    return scores.argmax(dim=-1).tolist()
