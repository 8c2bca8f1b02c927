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

from backend.activations import reading
from backend.errors import InputError
from backend.evaluation.rates import resamples
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.models.registry import Registry
from backend.models.variants import parse
from backend.saes.latents import SparseLatents
from backend.saes.loaded import loaded
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

    def __post_init__(self) -> None:
        for name in (self.base, self.organism):
            if parse(name).changes:
                raise InputError(f"{name} is steered; a diff compares models as they are. Leave the steering out, or read one text: python -m backend latents")
        if len({prompt.id for prompt in self.prompt_set.prompts}) < 2:
            raise InputError(f"The prompt set {self.prompt_set.name} has one prompt; an interval over prompts needs at least two. Choose more prompts.")


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
    read = Readings(diff.base, diff.organism, diff.texts, compare.answered(comparison, service, registry, keep=diff.prompt_set.as_manifest(), say=say))
    base, _ = registry.resolve(diff.base)
    sums = _Residuals(len(read.texts))
    say(f"Reading {len(read.texts)} texts at layer {diff.sae.layer}.")
    job = reading.start(
        service, diff.sae, base, [(variant, r.text_ids) for variant, r in read.texts],
        on_residual=lambda number, residual: sums.take(number, residual[slice(*read.spans[number])], is_base=read.texts[number][0] == diff.base),
    )  # fmt: skip
    while not job.job.wait(1.0):
        say(f"{job.job.n_done} of {len(read.texts)} texts read")
    latents = job.wait()
    decoder = loaded(diff.sae, base).sae.w_dec.float().cpu().numpy()
    return _compare(diff, read, latents, sums, decoder)


class Readings:
    """Which texts are read by whom, and means of what is read over prompts."""

    def __init__(self, base: str, organism: str, texts: Texts, answers: Sequence[Rollout]) -> None:
        """Raises: InputError: No text is left, or fewer than two prompts were answered by both."""
        self.base, self.organism = base, organism
        told = [r for r in answers if len(r.text_ids) > len(r.prompt_ids)]  # an answer without a word is left out
        if not told:
            raise InputError("All answers are empty, so there is nothing to compare. Choose other prompts or a longer answer.")
        self.texts = [(r.variant, r) for r in told] if texts == "own" else [(variant, r) for r in told for variant in (base, organism)]
        self.spans = [(len(r.prompt_ids), len(r.text_ids)) for _, r in self.texts]
        """Of each text's answer."""

        self._numbers: dict[tuple[str, str], list[int]] = {}
        for number, (variant, r) in enumerate(self.texts):
            self._numbers.setdefault((r.prompt_id, variant), []).append(number)
        asked = sorted({r.prompt_id for _, r in self.texts})
        self.prompts = [p for p in asked if (p, base) in self._numbers and (p, organism) in self._numbers]
        if len(self.prompts) < 2:
            raise InputError("Fewer than two prompts were answered by both models, so there is no interval. Choose more prompts.")

    def means(self, variant: str, of: Callable[[int], np.ndarray]) -> np.ndarray:
        """(n_prompts, ...): mean over a prompt's texts of what ``of`` gives for a text's number, each weighted by its tokens."""
        weight = np.array([stop - start for start, stop in self.spans], dtype=float)
        numbers = [self._numbers[p, variant] for p in self.prompts]
        return np.stack([np.average([of(i) for i in own], axis=0, weights=weight[own]) for own in numbers])


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


def _compare(diff: Diff, read: Readings, latents: Sequence[SparseLatents], sums: _Residuals, decoder: np.ndarray) -> Found:
    def latent_mean(number: int) -> np.ndarray:
        return latents[number].mean(np.arange(*read.spans[number]))

    def residual_mean(number: int) -> np.ndarray:
        found = sums.means[number]
        assert found is not None
        return found

    base, organism = read.means(diff.base, latent_mean), read.means(diff.organism, latent_mean)
    low, high, error = bootstrap(organism - base)
    difference = (read.means(diff.organism, residual_mean) - read.means(diff.base, residual_mean)).mean(0)
    cosine = decoder @ difference.astype(np.float32) / (np.linalg.norm(decoder, axis=1) * np.linalg.norm(difference) + 1e-12)
    counted = [n for n, (variant, r) in enumerate(read.texts) if r.prompt_id in read.prompts and (diff.texts == "own" or variant == diff.base)]
    return Found(
        n_prompts=len(read.prompts), n_texts=len(counted), n_tokens=sum(read.spans[n][1] - read.spans[n][0] for n in counted), base_mean=base.mean(0),
        organism_mean=organism.mean(0), low=low, high=high, standard_error=error, cosine=cosine, mean_difference=difference,
        residual_norm=float(np.median(np.concatenate(sums.norms))),
    )  # fmt: skip


def bootstrap(changes: np.ndarray, *, seed: int = 0, at_once: int = 4096) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """95 % percentile interval and standard error of the mean change of each latent, prompts drawn with replacement.

    Args:
        changes: (n_prompts, n_latents).

    Returns:
        Low, high, standard error, each (n_latents,).
    """
    counts = resamples(len(changes), DRAWS, seed) / len(changes)
    found = []
    for start in range(0, changes.shape[1], at_once):
        means = counts @ changes[:, start : start + at_once]
        found.append((*np.quantile(means, [0.025, 0.975], axis=0), means.std(0)))
    low, high, error = (np.concatenate(part) for part in zip(*found, strict=True))
    return low, high, error
