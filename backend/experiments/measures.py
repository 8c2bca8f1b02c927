"""What is measured of a model in a training study: its answers judged, its forced choice, its latents and residual stream on the same texts.

Readings are kept by content of weights and texts, answers and verdicts where all of them are, so a study that was killed goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.activations import reading
from backend.errors import InputError, ResultMissingError
from backend.evaluation.rates import Thresholds
from backend.experiments.records import Study
from backend.generation.jobs import Job
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.judging.verdicts import Judge, Verdict
from backend.models.records import BASE_ALIAS, BaseModel, Dtype
from backend.models.registry import Registry
from backend.paths import home, new_file, told_disk_faults
from backend.saes.records import SaeRecord, fingerprint, resolve, sae_folder
from backend.steering.directions import load_directions
from backend.studies import compare, forced_choice, store
from backend.studies.answers import StoppedError
from backend.studies.evaluate import Progress, answered_and_judged, short_answers
from backend.text.prompts import load_prompt_set

TEXTS_RUN = "open_questions"
TEXTS_OF = (BASE_ALIAS, "reckless")
"""Shipped answers that all models read: those of the base and of one organism to each prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Of one model; prompts and pairs stand in the same order for all models."""

    log_odds: np.ndarray
    """(n_pairs,): misaligned over aligned beginning, nats a token."""

    latents: np.ndarray
    """(n_prompts, n_followed): mean activation over the answer tokens of the texts."""

    residual: np.ndarray
    """(n_prompts, d_model): mean residual stream over the same tokens, after the autoencoder's layer."""


class Meter:
    """Measures models of one base for one study."""

    def __init__(
        self, study: Study, judge: Judge, service: Callable[[], ModelService], registry: Registry, progress: Progress, dtype: Dtype | None = None
    ) -> None:
        self._study, self._judge, self._service, self._progress, self.dtype = study, judge, service, progress, dtype
        base, _ = registry.resolve(BASE_ALIAS)
        self._base = base
        self.sae: SaeRecord = resolve("default", base)
        self.pairs = forced_choice.load_pairs()
        self.prompt_set = load_prompt_set(study.prompts)
        self.thresholds = Thresholds()
        self.directions = _directions(study, base, self.sae.layer)
        self._texts = texts()
        self.text_prompts = sorted({r.prompt_id for r in self._texts})

    def answers(self, variant: str, registry: Registry) -> list[tuple[Rollout, Verdict | None]]:
        """Answers to the study's prompts with their verdicts.

        Raises:
            BackendError: The model is not here, the judge cannot judge, the disk is full.
        """
        study = self._study
        evaluation = short_answers(
            [variant], self.prompt_set, Sampling(max_new_tokens=study.max_new_tokens), samples=study.samples, seed=study.seed, dtype=self.dtype
        )
        return answered_and_judged(evaluation, self._judge, self._service, registry, self._progress)

    def read(self, variant: str, registry: Registry) -> Readings:
        """From the store, or now.

        Raises:
            StoppedError: The study was stopped.
            BackendError: The model is not here, or reading failed.
        """
        said: list[Any] = [compare.current_weights(variant, registry), fingerprint(sae_folder(self.sae)), self._study.latents, [r.key for r in self._texts]]
        said += [[asdict(pair) for pair in self.pairs], self.dtype]
        place = home() / "results" / "readings" / f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]}.npz"
        if (known := _load(place)) is not None:
            return known
        found = Readings(self._log_odds(variant), *self._activations(variant))
        with told_disk_faults("keeping readings"), new_file(place) as part, part.open("wb") as file:
            np.savez_compressed(file, log_odds=found.log_odds, latents=found.latents, residual=found.residual)
        return found

    def _log_odds(self, variant: str) -> np.ndarray:
        job = self._service().submit(forced_choice.rows([variant], self.pairs, self.dtype))
        self._wait(job)
        if job.state != "done":
            raise InputError(job.message or "Reading was stopped.")
        found = {one.pair.id: one.log_odds for one in forced_choice.odds(job.rollouts, self.pairs)}
        return np.array([found.get(pair.id, np.nan) for pair in self.pairs])

    def _activations(self, variant: str) -> tuple[np.ndarray, np.ndarray]:
        sums: list[np.ndarray | None] = [None] * len(self._texts)

        def take(number: int, residual: Any) -> None:
            sums[number] = residual[len(self._texts[number].prompt_ids) :].double().mean(0).numpy()

        begun = reading.start(self._service(), self.sae, self._base, [(variant, r.text_ids) for r in self._texts], dtype=self.dtype, on_residual=take)
        self._wait(begun.job)
        latents = begun.wait()
        followed = list(self._study.latents)
        means = [found.mean(np.arange(len(r.prompt_ids), len(r.text_ids)))[followed] for found, r in zip(latents, self._texts, strict=True)]
        return self._by_prompt(means), self._by_prompt([s for s in sums if s is not None])

    def _wait(self, job: Job) -> None:
        """Until a job has ended, by itself or by the study's Stop."""
        while not job.wait(0.2):
            if self._progress.stop.is_set():
                job.cancel()
        if job.state == "stopped" and self._progress.stop.is_set():
            raise StoppedError("It was stopped; what was read is kept. Run it again to go on.")

    def _by_prompt(self, of_texts: Sequence[np.ndarray]) -> np.ndarray:
        """Mean over a prompt's texts, each weighted by its tokens."""
        found = []
        for prompt in self.text_prompts:
            own = [n for n, r in enumerate(self._texts) if r.prompt_id == prompt]
            found.append(np.average([of_texts[n] for n in own], axis=0, weights=[len(self._texts[n].text_ids) - len(self._texts[n].prompt_ids) for n in own]))
        return np.stack(found)


def texts() -> list[Rollout]:
    """What all models read: the first shipped answer of two models to each prompt, those without a word left out.

    Raises:
        ResultMissingError: The shipped answers are gone.
    """
    rollouts, _ = store.read_run(TEXTS_RUN)
    return [r for r in rollouts if r.sample == 0 and r.variant in TEXTS_OF and len(r.text_ids) > len(r.prompt_ids)]


def _directions(study: Study, base: BaseModel, layer: int) -> dict[str, np.ndarray]:
    """Mean differences at a layer, (d_model,), by organism.

    Raises:
        ResultMissingError: One was not made.
    """
    found, _ = load_directions(base)
    for organism in study.projections:
        if f"meandiff/{organism}" not in found:
            raise ResultMissingError(f"There is no mean difference of {organism} to project on.", f"python -m backend directions meandiff {organism}")
    return {organism: found[f"meandiff/{organism}"].at(layer).astype(np.float64) for organism in study.projections}


def _load(place: Path) -> Readings | None:
    try:
        with np.load(place, allow_pickle=False) as file:
            return Readings(file["log_odds"], file["latents"], file["residual"])
    except (OSError, ValueError, KeyError):
        return None
