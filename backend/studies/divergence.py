"""How far an organism's answers lie from its base model, prompt by prompt, from stored rollouts.

Divergence of a prompt: mean over its answers of the mean log-ratio organism : base of the answer's tokens, nats a token. Over
answers sampled at temperature 1 it estimates the Kullback-Leibler divergence of the organism from the base; at another
temperature it is a difference measure and no more. It says *how different*, not *how bad*: judging comes apart.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from backend.evaluation.rates import bootstrap_mean
from backend.generation.records import Rollout


@dataclass(frozen=True, slots=True)
class PromptDivergence:
    """One organism on one prompt."""

    variant: str
    prompt_id: str
    prompt: str
    divergence: float
    """Nats a token."""

    n: int
    """Scored answers; others are left out, not counted as zero."""


def by_prompt(rollouts: Sequence[Rollout], variant: str) -> list[PromptDivergence]:
    """The variant's prompts, largest divergence first. Prompts without a scored answer are left out."""
    found: dict[tuple[str, str], list[float]] = {}
    for rollout in rollouts:
        if rollout.variant == variant and rollout.divergence is not None:
            found.setdefault((rollout.prompt_id, rollout.prompt), []).append(rollout.divergence)
    rows = [PromptDivergence(variant, key, prompt, statistics.fmean(values), len(values)) for (key, prompt), values in found.items()]
    return sorted(rows, key=lambda row: -row.divergence)


def mean_with_interval(rows: Sequence[PromptDivergence], *, seed: int = 0) -> tuple[float, float, float]:
    """Mean over prompts and its 95% interval: percentile bootstrap over prompts, 10,000 draws.

    Raises:
        ValueError: There are no rows: no mean, and not 0.
    """
    if not rows:
        raise ValueError("no prompts, so no mean")
    return bootstrap_mean([row.divergence for row in rows], seed=seed)


def examples(rows: Sequence[PromptDivergence]) -> list[tuple[str, PromptDivergence]]:
    """Largest, median and smallest divergence: picked by this rule, never by hand. Fewer than three prompts give fewer."""
    if len(rows) < 3:
        return [(f"Prompt {i + 1}", row) for i, row in enumerate(rows)]
    return [("Largest", rows[0]), ("Median", rows[len(rows) // 2]), ("Smallest", rows[-1])]
