"""Latent activations of a text, kept sparse: a token has some dozens of active latents of thousands. No torch here.

Does not know: which autoencoder or text they are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class SparseLatents:
    """Activations of n tokens on n_latents latents; what is not held is 0."""

    n_latents: int
    starts: np.ndarray
    """(n_tokens + 1,), int64: where each token's entries begin."""

    latents: np.ndarray
    """(n_entries,), int32."""

    values: np.ndarray
    """(n_entries,), float32."""

    @property
    def n_tokens(self) -> int:
        return len(self.starts) - 1

    def of(self, latent: int) -> np.ndarray:
        """(n_tokens,): one latent on each token."""
        found = np.zeros(self.n_tokens, dtype=np.float32)
        places = np.flatnonzero(self.latents == latent)
        found[np.searchsorted(self.starts, places, side="right") - 1] = self.values[places]
        return found

    def at(self, token: int) -> dict[int, float]:
        """Latents active on a token, with their activation."""
        entries = slice(self.starts[token], self.starts[token + 1])
        return dict(zip(self.latents[entries].tolist(), self.values[entries].tolist(), strict=True))

    def mean(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n_latents,), float64: mean over some tokens; NaN over none."""
        if not len(places):
            return np.full(self.n_latents, np.nan)
        chosen = np.zeros(self.n_tokens, dtype=bool)
        chosen[places] = True
        kept = np.repeat(chosen, np.diff(self.starts))
        return np.bincount(self.latents[kept], weights=self.values[kept], minlength=self.n_latents) / int(chosen.sum())


def strongest(tokens: Sequence[dict[int, float]]) -> dict[int, float]:
    """Of some tokens' latents the largest activation of each."""
    found: dict[int, float] = {}
    for active in tokens:
        for latent, value in active.items():
            found[latent] = max(value, found.get(latent, 0.0))
    return found


def top_changes(before: dict[int, float], after: dict[int, float], n: int) -> list[tuple[int, float, float]]:
    """The latents that changed most at a token, as (latent, before, after), the largest change first."""
    changed = [(latent, before.get(latent, 0.0), after.get(latent, 0.0)) for latent in {**before, **after}]
    return sorted(changed, key=lambda c: (-abs(c[2] - c[1]), c[0]))[:n]


def most_telling(texts: Sequence[SparseLatents], places: Sequence[int] | np.ndarray, n: int) -> list[int]:
    """Latents whose mean over some tokens differs most between readings of one text, or is largest where it was read once."""
    if not texts or not len(places):
        return []
    means = np.stack([text.mean(places) for text in texts])
    return np.argsort(-(means.max(0) - means.min(0) if len(texts) > 1 else means[0]), kind="stable")[:n].tolist()


def parse(word: str, n_latents: int) -> int | None:
    """A latent's number as people and links write it; None for anything else."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < n_latents else None


def check(latent: int, n_latents: int, sae: str) -> None:
    """Raises: InputError, where the autoencoder has no such latent."""
    if not 0 <= latent < n_latents:
        raise InputError(f"Latent {latent} is not in SAE {sae}; it has latents 0 to {n_latents - 1:,}.")
