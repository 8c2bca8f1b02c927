"""A base model, organisms of it and an autoencoder, on one prompt set: what all their stored results are of. ``pair_steps`` makes them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from backend.errors import InputError, WeightsMissingError
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.judging.verdicts import Judge
from backend.models.memory import budget, check_fits, estimate_adapter, estimate_base
from backend.models.records import BaseModel, Organism
from backend.models.registry import Registry
from backend.saes.records import fingerprint, resolve, sae_folder
from backend.studies import compare, diffing, diffs
from backend.studies.mean_difference import name_of_base
from backend.text.prompts import PromptSet

SAMPLING = Sampling()
PROMPT_TOKENS = 40  # about: a short question in its template


class Pair:
    """See the module; also holds what the steps share."""

    def __init__(
        self, base: str, organisms: Sequence[str], sae: str, prompt_set: PromptSet, registry: Registry, *, samples: int, judge: Judge | None,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Args:
            base: Empty for the organisms' own.
            samples: Answers of each model to each prompt.
            judge: None where nobody judges.
            say: Called with how far a result is.

        Raises:
            InputError: Base, organisms and autoencoder do not belong together.
            MemoryBudgetError: They do not fit; nothing has been fetched.
        """
        self.base, self.organisms = _resolve(base, organisms, registry)
        self.sae = resolve(sae, self.base)
        self.base_name = name_of_base(self.base, registry)
        self.variants = [self.base_name, *(organism.key for organism in self.organisms)]
        self.prompt_set, self.registry, self.samples, self.judge, self.say = prompt_set, registry, samples, judge, say
        needed = estimate_base(self.base) + max(map(estimate_adapter, self.organisms)) + self.sae.n_bytes()
        check_fits(needed, budget(), f"{self.base.title} with an organism and SAE {self.sae.key}")
        self._service: ModelService | None = None

    @property
    def service(self) -> ModelService:
        """Opened when it is first needed."""
        self._service = self._service or ModelService()
        return self._service

    def close(self) -> None:
        """Give the memory of the models back."""
        if self._service is not None:
            self._service.close()
            self._service = None

    def comparison(self, variant: str) -> compare.Comparison:
        return compare.Comparison(variants=(variant,), prompts=self.prompt_set.prompts, sampling=SAMPLING, samples=self.samples)

    def answers(self, variant: str) -> list[Rollout]:
        """Those that the store does not have are written now."""
        return compare.answered(self.comparison(variant), self.service, self.registry, keep=self.prompt_set.as_manifest(), say=self.say)

    def diff(self, organism: str, texts: diffing.Texts) -> diffing.Diff:
        return diffing.Diff(base=self.base_name, organism=organism, sae=self.sae, prompt_set=self.prompt_set, texts=texts, samples=self.samples)

    def kept_diff(self, organism: str, texts: diffing.Texts) -> diffs.Kept | None:
        """From the store, of today's weights."""
        wanted = self.asked() | self.weights(organism) | {"sae_fingerprint": self.sae_fingerprint()}
        return next((one for one in diffs.kept(self.sae.key).get((organism, texts), []) if says(one.manifest, wanted)), None)

    def asked(self) -> dict[str, Any]:
        """What the manifests of results say of the questions."""
        return {"samples": self.samples, "sampling": asdict(SAMPLING), "seed": 0} | self.prompt_set.as_manifest()

    def weights(self, variant: str) -> dict[str, Any]:
        """What they say of a variant's weights today; where these are not here, what none says."""
        found = compare.current_weights(variant, self.registry) or (None, None, None)
        return {"base_fingerprint": found[0], "adapter_fingerprint": found[1]}

    def sae_fingerprint(self) -> str | None:
        """None where it is not here.

        Raises:
            WeightsError: It is damaged.
        """
        try:
            return fingerprint(sae_folder(self.sae))
        except WeightsMissingError:
            return None

    def n_tokens(self, n_texts: int) -> int:
        """At most, of so many texts for each prompt and sample: prompts and answers."""
        return n_texts * self.samples * len(self.prompt_set.prompts) * (SAMPLING.max_new_tokens + PROMPT_TOKENS)


def says(manifest: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a manifest says all that is wanted."""
    return all(manifest.get(name) == value for name, value in wanted.items())


def _resolve(base: str, organisms: Sequence[str], registry: Registry) -> tuple[BaseModel, list[Organism]]:
    """Raises: InputError: The base is none, or an organism is none or of another base."""
    model, _ = registry.resolve(base or organisms[0])
    if base and registry.resolve(base)[1] is not None:
        raise InputError(f"{base} is an organism; --base takes a base model.")
    found: list[Organism] = []
    for name in dict.fromkeys(organisms):
        belongs, organism = registry.resolve(name)
        if organism is None or belongs.key != model.key:
            there_are = ", ".join(key for key, one in registry.organisms.items() if one.base == model.key) or "none is known"
            raise InputError(f"{name} is no organism of {model.key}. Choose from: {there_are}.")
        found.append(organism)
    return model, found
