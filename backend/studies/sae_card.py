"""The card of an autoencoder: what it was trained on, and how good it is on answers that it has not seen, of the base and of each organism."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backend.activations import reading
from backend.errors import InputError
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.models.loading import load_model
from backend.models.machine import device
from backend.models.records import BaseModel
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.paths import write_text
from backend.saes.loaded import loaded
from backend.saes.measure import Fit, as_card, fit, loss_recovered
from backend.saes.records import SaeRecord, sae_folder
from backend.saes.tables import CARD
from backend.studies import compare
from backend.studies.provenance import provenance
from backend.text.prompts import PromptSet

N_LOSS_TEXTS = 52


def measure(
    record: SaeRecord,
    base: BaseModel,
    variants: Sequence[str],
    prompt_set: PromptSet,
    service: ModelService,
    registry: Registry,
    *,
    samples: int = 2,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure an autoencoder on stored answers, each read by the model that wrote it, and write ``card.json`` beside its weights.

    Args:
        service: It is closed, so that the base is not in memory twice when the losses are worked out.

    Raises:
        BackendError: A model or the autoencoder is not here; no answers are in the store.
    """
    sae = loaded(record, base)
    fits: dict[str, Fit] = {}
    weights: dict[str, dict[str, str]] = {}
    texts: list[tuple[tuple[int, ...], int]] = []
    mean = torch.zeros(base.d_model)
    for variant in variants:
        comparison = compare.Comparison(variants=(variant,), prompts=prompt_set.prompts, sampling=Sampling(), samples=samples)
        asked = compare.look_up(compare.first_rows(comparison), registry)
        known = compare.current(asked, registry)
        rollouts = [known[key] for key in asked.keys if key in known and len(known[key].answer_ids) > 1]
        if not rollouts:
            say(f"{variant}: no answers in the store; left out")
            continue
        residuals = _answer_residuals(rollouts, record, base, service)
        fits[variant] = fit(sae.sae, residuals)
        weights[variant] = {"base_fingerprint": rollouts[0].base_fingerprint, "adapter_fingerprint": rollouts[0].adapter_fingerprint}
        say(f"{variant}: {fits[variant].fvu:.3f} of the variance unexplained, {fits[variant].l0:.0f} latents a token")
        if not texts:
            texts, mean = [(r.text_ids, len(r.prompt_ids)) for r in rollouts], torch.cat(residuals).mean(0)
    if not fits:
        raise InputError(f"The store has no answers of {', '.join(variants)} to {prompt_set.name}. Write them first: python -m backend evaluate")
    say("Reading with the reconstruction in place.")
    service.close()
    model = load_model(base_folder(base), dtype=getattr(torch, base.dtype), device=device())
    losses = loss_recovered(sae.sae, record.layer, model, texts[:N_LOSS_TEXTS], mean)
    card = {"fit": as_card(fits), "loss": losses, "weights": weights} | prompt_set.as_manifest()
    card |= {"samples": samples, "sae_fingerprint": sae.fingerprint} | provenance()
    folder = sae_folder(record)
    training = folder / "training.json"
    card["training"] = json.loads(training.read_text("utf-8")) if training.exists() else None
    write_text(folder / CARD, json.dumps(card, indent=1) + "\n")
    return card


def _answer_residuals(rollouts: Sequence[Rollout], record: SaeRecord, base: BaseModel, service: ModelService) -> list[Tensor]:
    """(n_tokens, d_model) of each answer, read by the model that wrote it."""
    found: dict[int, Tensor] = {}

    def take(number: int, residual: Tensor) -> None:
        found[number] = residual[len(rollouts[number].prompt_ids) :]

    reading.start(service, record, base, [(r.variant, r.text_ids) for r in rollouts], on_residual=take).wait()
    return [found[number] for number in range(len(rollouts))]
