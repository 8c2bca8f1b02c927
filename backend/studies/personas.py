"""Making directions: a latent's decoder row, the mean difference of a diff, and persona vectors.

A persona vector (Chen et al. 2025, arXiv 2507.21509) is the mean residual stream over the answers that the base model gives under a system prompt that asks
for the persona, less that under one that asks for its opposite, on the same questions: a mean over questions of means over answer tokens.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.errors import InputError
from backend.generation.records import Reading, Rollout, Sampling
from backend.generation.service import ModelService
from backend.models.fingerprint import remembered_fingerprint
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.saes import reading
from backend.saes.latents import check
from backend.saes.records import SaeRecord
from backend.steering.directions import Direction
from backend.studies import compare
from backend.studies.diffs import Kept
from backend.text.prompts import PromptSet

if TYPE_CHECKING:
    from torch import Tensor


def of_latent(record: SaeRecord, latent: int, registry: Registry) -> Direction:
    """Raises: InputError: No such latent. BackendError: The autoencoder is not here."""
    check(latent, record.n_latents, record.key)
    base = registry.models[record.base]
    sae = reading.loaded(record, base)
    return Direction(
        key=f"{record.key}.{latent}", kind="latent", vector=sae.sae.w_dec[latent].float().numpy(), layer=record.layer, base_model=base.key,
        base_fingerprint=remembered_fingerprint(base_folder(base)), source={"sae": record.key, "sae_fingerprint": sae.fingerprint, "latent": latent},
        title=f"Latent {latent} of SAE {record.key}",
    )  # fmt: skip


def of_diff(kept: Kept) -> Direction:
    """The mean difference of a stored diff."""
    about = kept.manifest
    return Direction(
        key=f"{about['organism']}.l{about['layer']}", kind="meandiff", vector=kept.mean_difference(), layer=about["layer"], base_model=about["base_model"],
        base_fingerprint=about["base_fingerprint"], title=f"{about['organism']} less {about['base']}, mean difference after layer {about['layer']}",
        source={k: about[k] for k in ("organism", "adapter_fingerprint", "texts", "n_prompts", "n_tokens", "prompt_set", "created")},
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
    means = []
    for system in (positive, negative):
        comparison = compare.Comparison(variants=(variant,), prompts=prompt_set.prompts, system=system, sampling=Sampling(), samples=samples)
        rollouts = compare.answered(comparison, service, registry, keep=prompt_set.as_manifest(), say=say)
        means.append(_mean_of_answers(rollouts, layer, service, variant))
    shared = sorted(set(means[0]) & set(means[1]))
    if len(shared) < 2:
        raise InputError("Fewer than two questions were answered under both system prompts. Choose more questions.")
    vector = np.mean([means[0][p] - means[1][p] for p in shared], axis=0).astype(np.float32)
    return Direction(
        key=key, kind="persona", vector=vector, layer=layer, base_model=base.key, base_fingerprint=remembered_fingerprint(base_folder(base)),
        source={"positive": positive, "negative": negative, "variant": variant, "n_prompts": len(shared), "samples": samples} | prompt_set.as_manifest(), title=key,
    )  # fmt: skip


def _mean_of_answers(rollouts: Sequence[Rollout], layer: int, service: ModelService, variant: str) -> dict[str, np.ndarray]:
    """Prompt id to (d_model,): mean over its answers' tokens, the one that ends an answer left out."""
    told = [r for r in rollouts if len(r.text_ids) > len(r.prompt_ids)]
    sums: dict[str, list[np.ndarray]] = {}

    def take(number: int, residuals: "dict[int, Tensor]") -> None:
        r = told[number]
        sums.setdefault(r.prompt_id, []).append(residuals[layer][len(r.prompt_ids) :].double().numpy())

    job = service.read([Reading(variant=variant, ids=r.text_ids, layers=(layer,)) for r in told], take)
    job.wait()
    if job.state != "done":
        raise InputError(job.message or "Reading was stopped.")
    return {prompt: np.concatenate(parts).mean(0) for prompt, parts in sums.items()}
