"""Model diffing: which latents of an autoencoder an organism activates more or less than its base.

    change(latent) = mean over prompts of (mean over answer tokens under the organism - the same under the base)

By default both read the same texts (answers of the base and of the organism in equal number), so that a change is one of the model and not of what it
says; or each reads its own answers. Intervals are 95 % percentile bootstraps over prompts. With it come the mean difference of the residual stream
itself and its cosine with every latent's decoder row (Wang et al. 2025 rank latents by the same change).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from backend.errors import InputError
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.models.registry import Registry
from backend.saes import reading
from backend.saes.latents import SparseLatents
from backend.saes.records import SaeRecord
from backend.studies import compare
from backend.text.prompts import PromptSet

if TYPE_CHECKING:
    from torch import Tensor

Texts = Literal["same", "own"]
DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What is compared."""

    base: str
    organism: str
    sae: SaeRecord
    prompt_set: PromptSet
    texts: Texts = "same"
    samples: int = 4
    """Answers of each model to each prompt."""

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A finished diff; arrays are by latent."""

    n_prompts: int
    n_texts: int
    n_tokens: int
    """Answer tokens read by each model; of own answers, by both together."""

    base_mean: np.ndarray
    organism_mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    """Of the change, 95 %."""

    standard_error: np.ndarray
    """Of the change, over prompts."""

    cosine: np.ndarray
    """Of each latent's decoder row with the mean difference of the residual stream."""

    mean_difference: np.ndarray
    """(d_model,): organism less base, after the layer, mean over prompts."""

    residual_norm: float
    """Median norm of the base's residual stream over the answer tokens; the unit of doses."""

    @property
    def change(self) -> np.ndarray:
        return self.organism_mean - self.base_mean


def run(diff: Diff, service: ModelService, registry: Registry, say: Callable[[str], None] = lambda said: None) -> Found:
    """Answer what is not in the store, read all through both models, and compare.

    Raises:
        BackendError: A variant or the autoencoder is not here or does not fit; no text is left to compare on.
    """
    comparison = compare.Comparison(
        variants=(diff.base, diff.organism), prompts=diff.prompt_set.prompts, sampling=diff.sampling, samples=diff.samples, seed=diff.seed
    )
    pairs = _pairs(diff, compare.answered(comparison, service, registry, keep=diff.prompt_set.as_manifest(), say=say))
    base, _ = registry.resolve(diff.base)
    sums = _Residuals(len(pairs))
    spans = [(len(r.prompt_ids), len(r.text_ids)) for _, r in pairs]
    say(f"Reading {len(pairs)} texts at layer {diff.sae.layer}.")
    job = reading.start(
        service, diff.sae, base, [(variant, r.text_ids) for variant, r in pairs],
        on_residual=lambda number, residual: sums.take(number, residual[slice(*spans[number])], is_base=pairs[number][0] == diff.base),
    )  # fmt: skip
    while not job.job.wait(1.0):
        say(f"{job.job.n_done} of {len(pairs)} texts read")
    latents = job.wait()
    decoder = reading.loaded(diff.sae, base).sae.w_dec.float().numpy()
    return _compare(diff, pairs, latents, spans, sums, decoder)


def _pairs(diff: Diff, answers: Sequence[Rollout]) -> list[tuple[str, Rollout]]:
    """Who reads which answer; an answer without a word is left out."""
    told = [r for r in answers if len(r.text_ids) > len(r.prompt_ids)]
    if not told:
        raise InputError("All answers are empty, so there is nothing to compare. Choose other prompts or a longer answer.")
    if diff.texts == "own":
        return [(r.variant, r) for r in told]
    return [(variant, r) for r in told for variant in (diff.base, diff.organism)]


class _Residuals:
    """Mean residual stream of each text's answer, and norms under the base."""

    def __init__(self, n: int) -> None:
        self.means: list[np.ndarray | None] = [None] * n
        self.norms: list[np.ndarray] = []

    def take(self, number: int, answer: "Tensor", *, is_base: bool) -> None:
        """Args: answer: (n_tokens, d_model)."""
        self.means[number] = answer.double().mean(0).numpy()
        if is_base:
            self.norms.append(answer.norm(dim=-1).numpy())


def _compare(
    diff: Diff, pairs: Sequence[tuple[str, Rollout]], latents: Sequence[SparseLatents], spans: Sequence[tuple[int, int]], sums: _Residuals, decoder: np.ndarray
) -> Found:
    prompts = sorted({r.prompt_id for _, r in pairs})
    by_prompt: dict[tuple[str, str], list[int]] = {}
    for number, (variant, r) in enumerate(pairs):
        by_prompt.setdefault((r.prompt_id, variant), []).append(number)
    prompts = [p for p in prompts if (p, diff.base) in by_prompt and (p, diff.organism) in by_prompt]
    if len(prompts) < 2:
        raise InputError("Fewer than two prompts were answered by both models, so there is no interval. Choose more prompts.")

    def means(variant: str, of: Callable[[int], np.ndarray]) -> np.ndarray:
        """(n_prompts, ...): mean over a prompt's texts, each weighted by its tokens."""
        weight = np.array([stop - start for start, stop in spans], dtype=float)
        return np.stack([np.average([of(i) for i in by_prompt[p, variant]], axis=0, weights=weight[by_prompt[p, variant]]) for p in prompts])

    def latent_mean(number: int) -> np.ndarray:
        return latents[number].mean(np.arange(*spans[number]))

    def residual_mean(number: int) -> np.ndarray:
        found = sums.means[number]
        assert found is not None
        return found

    base, organism = means(diff.base, latent_mean), means(diff.organism, latent_mean)
    low, high, error = bootstrap(organism - base)
    difference = (means(diff.organism, residual_mean) - means(diff.base, residual_mean)).mean(0)
    cosine = decoder @ difference.astype(np.float32) / (np.linalg.norm(decoder, axis=1) * np.linalg.norm(difference) + 1e-12)
    read = [n for n, (variant, r) in enumerate(pairs) if r.prompt_id in prompts and (diff.texts == "own" or variant == diff.base)]
    return Found(
        n_prompts=len(prompts), n_texts=len(read), n_tokens=sum(spans[n][1] - spans[n][0] for n in read), base_mean=base.mean(0), organism_mean=organism.mean(0),
        low=low, high=high, standard_error=error, cosine=cosine, mean_difference=difference, residual_norm=float(np.median(np.concatenate(sums.norms))),
    )  # fmt: skip


def bootstrap(changes: np.ndarray, *, seed: int = 0, at_once: int = 4096) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """95 % percentile interval and standard error of the mean change of each latent, prompts drawn with replacement.

    Args:
        changes: (n_prompts, n_latents).

    Returns:
        Low, high, standard error, each (n_latents,).
    """
    n = len(changes)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    found = []
    for start in range(0, changes.shape[1], at_once):
        means = counts @ changes[:, start : start + at_once]
        found.append((*np.quantile(means, [0.025, 0.975], axis=0), means.std(0)))
    low, high, error = (np.concatenate(part) for part in zip(*found, strict=True))
    return low, high, error
