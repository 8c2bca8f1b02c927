"""Drawing the next token of each row with the row's own random generator."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def make_generator(seed: int) -> torch.Generator:
    """A generator for one row; torch uses 32 bits of the seed."""
    return torch.Generator().manual_seed(seed % 2**32)


def draw(logits: Tensor, temperatures: Sequence[float], generators: Sequence[torch.Generator]) -> tuple[list[int], list[float]]:
    """The next token of each row: largest of ``logits / temperature`` plus Gumbel noise (a draw from the softmax).

    The Gumbel form makes a sampled decision as robust as a greedy one: only where the best two are closer than numerical
    noise can another batch change it.

    Args:
        logits: (rows, vocabulary).
        temperatures: One a row; 0 is greedy.

    Returns:
        The ids and their log-probabilities at temperature 1; the latter not finite where a row's logits are not.
    """
    logits = logits.to("cpu", torch.float32)
    tokens = logits.argmax(dim=-1).tolist()
    if any(temperatures):
        uniform = torch.empty(logits.shape[1], dtype=torch.float64)  # one for all rows: it stays in the processor's cache
        for i, (temperature, generator) in enumerate(zip(temperatures, generators, strict=True)):
            if temperature > 0:
                torch.rand(uniform.shape, generator=generator, out=uniform)
                tokens[i] = _largest_with_noise(logits[i], temperature, tokens[i], uniform)
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return tokens, (chosen - logits.logsumexp(dim=-1)).tolist()


def _largest_with_noise(logits: Tensor, temperature: float, best: int, uniform: Tensor) -> int:
    """Index of the largest noisy logit. Noise is worked out only for tokens that could win against ``best``; they are looked for by numpy, which is quicker."""
    of_all = logits.numpy()
    floor = float(of_all[best]) + temperature * float(_gumbel(uniform[best]) - _gumbel(torch.tensor(uniform.numpy().max())))
    if not math.isfinite(floor):
        return best
    candidates = torch.from_numpy(np.flatnonzero(of_all >= floor - 1e-3))
    noisy = logits[candidates].double() / temperature + _gumbel(uniform[candidates])
    return int(candidates[noisy.argmax()])


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.clamp(min=1e-300).log()).log()
