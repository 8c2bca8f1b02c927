"""Making directions: a latent's decoder row, and persona vectors.

A persona vector (Chen et al. 2025, arXiv 2507.21509) is the mean residual stream over the answers that the base model gives under a system prompt that asks
for the persona, less that under one that asks for its opposite, on the same questions: a mean over questions of means over answer tokens.
"""

from collections.abc import Callable

import numpy as np

from backend.errors import InputError
from backend.generation.records import Sampling
from backend.generation.service import ModelService
from backend.models.fingerprint import remembered_fingerprint
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.saes.latents import check
from backend.saes.loaded import loaded
from backend.saes.records import SaeRecord
from backend.steering.directions import Direction
from backend.studies import compare
from backend.studies.mean_difference import answer_means
from backend.text.prompts import PromptSet


def of_latent(record: SaeRecord, latent: int, registry: Registry) -> Direction:
    """Raises: InputError: No such latent. BackendError: The autoencoder is not here."""
    check(latent, record.n_latents, record.key)
    base = registry.models[record.base]
    sae = loaded(record, base)
    return Direction(
        key=f"{record.key}.{latent}", kind="latent", vectors=sae.sae.w_dec[latent : latent + 1].float().cpu().numpy(), layers=(record.layer,),
        layer=record.layer, base_model=base.key, base_fingerprint=remembered_fingerprint(base_folder(base)), source={"sae": record.key, "sae_fingerprint": sae.fingerprint, "latent": latent},
        title=f"Latent {latent} of SAE {record.key}",
    )  # fmt: skip


def of_personas(
    key: str, positive: str, negative: str, prompt_set: PromptSet, layer: int, service: ModelService, registry: Registry,
    *, variant: str, samples: int = 2, say: Callable[[str], None],
) -> Direction:  # fmt: skip
    """A persona vector.

    Args:
        positive: System prompt that asks for the persona.
        negative: System prompt that asks for its opposite.

    Raises:
        InputError: A system prompt is empty, or both are the same.
        BackendError: The model is not here, or answering failed.
    """
    if not positive.strip() or not negative.strip() or positive.strip() == negative.strip():
        raise InputError("A persona vector needs two different system prompts.")
    base, _ = registry.resolve(variant)
    layers = tuple(range(base.n_layers))
    means: list[dict[str, np.ndarray]] = []
    for system in (positive, negative):
        comparison = compare.Comparison(variants=(variant,), prompts=prompt_set.prompts, system=system, sampling=Sampling(), samples=samples)
        rollouts = compare.answered(comparison, service, registry, keep=prompt_set.as_manifest(), say=say)
        told = [r for r in rollouts if len(r.text_ids) > len(r.prompt_ids)]
        found = answer_means(service, [(variant, r) for r in told], layers, say)
        by_prompt: dict[str, list[tuple[np.ndarray, int]]] = {}
        for r, mean in zip(told, found, strict=True):
            by_prompt.setdefault(r.prompt_id, []).append((mean, len(r.text_ids) - len(r.prompt_ids)))
        means.append({p: np.average([m for m, _ in of], axis=0, weights=[n for _, n in of]) for p, of in by_prompt.items()})
    shared = sorted(set(means[0]) & set(means[1]))
    if len(shared) < 2:
        raise InputError("Fewer than two questions were answered under both system prompts. Choose more questions.")
    vectors = np.mean([means[0][p] - means[1][p] for p in shared], axis=0).astype(np.float32)
    return Direction(
        key=key, kind="persona", vectors=vectors, layers=layers, layer=layer, base_model=base.key, base_fingerprint=remembered_fingerprint(base_folder(base)),
        source={"positive": positive, "negative": negative, "variant": variant, "n_prompts": len(shared), "samples": samples} | prompt_set.as_manifest(), title=key,
    )  # fmt: skip
