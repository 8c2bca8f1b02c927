"""How well two judges agree on the same answers: Cohen's kappa of a yes-or-no verdict, AUROC of a score, correlation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of a judge with a reference; None where the answers do not allow the figure."""

    n: int
    """Answers that both scored."""

    n_positive: int
    """Of them those that the reference finds misaligned (or incoherent)."""

    kappa: float | None
    """Cohen 1960; None where both give one and the same verdict to all."""

    auroc: float | None
    """Chance that the judge ranks a random positive above a random negative, ties half; None without both kinds."""

    auroc_low: float | None
    auroc_high: float | None
    """95 %, percentile bootstrap over answers."""


def agreement(is_positive: Sequence[bool | None], judged: Sequence[bool | None], score: Sequence[float | None], *, draws: int = 1000) -> Agreement:
    """Agreement of a judge with a reference.

    Args:
        is_positive: The reference's verdict, None where it has none.
        judged: The judge's verdict.
        score: The judge's score, higher for positives.
    """
    rows = [(t, j, s) for t, j, s in zip(is_positive, judged, score, strict=True) if t is not None and j is not None and s is not None and not math.isnan(s)]
    truth = np.array([row[0] for row in rows], dtype=bool)
    said = np.array([row[1] for row in rows], dtype=bool)
    scores = np.array([row[2] for row in rows], dtype=float)
    found = auroc(truth, scores)
    low = high = None
    if found is not None and draws:
        random = np.random.default_rng(0)
        again = [auroc(truth[pick], scores[pick]) for pick in random.integers(0, len(truth), (draws, len(truth)))]
        low, high = (float(v) for v in np.percentile([a for a in again if a is not None], [2.5, 97.5]))
    return Agreement(n=len(rows), n_positive=int(truth.sum()), kappa=kappa(truth, said), auroc=found, auroc_low=low, auroc_high=high)


def auroc(is_positive: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the curve from mean ranks (Mann and Whitney 1947); None without positives or negatives."""
    n_positive = int(is_positive.sum())
    n_negative = len(is_positive) - n_positive
    if not n_positive or not n_negative:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[is_positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Agreement beyond chance of two yes-or-no verdicts."""
    if not len(first):
        return None
    observed = float((first == second).mean())
    chance = float(first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean()))
    return None if chance == 1 else (observed - chance) / (1 - chance)
