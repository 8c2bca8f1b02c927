"""Is a difference more than chance, over prompts and after many comparisons; and what could a test have found?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

ALPHA, POWER = 0.05, 0.80
_FLIPS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What a test could have found."""

    smallest_effect: float
    """Mean effect, 0-1, that ``POWER`` of such runs would find at ``ALPHA`` after correction."""

    standard_error: float
    n_prompts: int


def sign_flip(differences: np.ndarray, *, seed: int = 0) -> float:
    """One-sided p-value that the mean difference is above 0: share of sign changes of the prompts whose mean is as large (Fisher's randomisation test).

    Args:
        differences: (n_prompts,); NaN where a prompt has none.
    """
    told = differences[~np.isnan(differences)]
    if not len(told):
        return 1.0
    return float((1 + ((_signs(len(told), seed) @ told) >= told.sum() - 1e-9).sum()) / (1 + _FLIPS))


@lru_cache(maxsize=8)
def _signs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, n))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for as many tests (Holm 1979), in the order given."""
    corrected = np.empty(len(ps))
    largest = 0.0
    for place, number in enumerate(np.argsort(ps)):
        largest = max(largest, min(1.0, ps[number] * (len(ps) - place)))
        corrected[number] = largest
    return corrected.tolist()


def mean_of(controls: Sequence[np.ndarray]) -> np.ndarray:
    """(n_prompts,): mean over the controls that have a value for the prompt; NaN where none has."""
    stacked = np.stack(controls)
    n = (~np.isnan(stacked)).sum(0)
    return np.where(n > 0, np.nansum(stacked, axis=0) / np.maximum(n, 1), np.nan)


def power(controls: list[np.ndarray], n_tests: int) -> Power:
    """From controls, each against the mean of the others: that is what a candidate without an effect looks like.

    Args:
        controls: Of each control (n_prompts,) changes; two at least.
        n_tests: Candidates that the correction is for.
    """
    errors = []
    for number, changes in enumerate(controls):
        rest = changes - mean_of(controls[:number] + controls[number + 1 :])
        told = rest[~np.isnan(rest)]
        errors.append(told.std(ddof=1) / len(told) ** 0.5 if len(told) > 1 else np.nan)
    n_prompts = int((~np.isnan(mean_of(controls))).sum())
    error = max(float(np.nanmean(errors)), 0.25 / max(1, n_prompts))  # changes that are all 0 have no spread, but one more answer would
    z = NormalDist().inv_cdf(1 - ALPHA / max(1, n_tests)) + NormalDist().inv_cdf(POWER)
    return Power(smallest_effect=z * error, standard_error=error, n_prompts=n_prompts)
