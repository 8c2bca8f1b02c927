"""Mean differences of an organism and its base after every layer, and the norms that doses are measured in.

    mean difference after L = mean over prompts of (mean over answer tokens under the organism - the same under the base)

Both read the same texts, answers of the base and of the organism in equal number, as a diff does: a change of the model and not of what it says, and at an
autoencoder's layer the diff's own vector. Or each reads its own answers: then the difference of the texts is in it as well, and it steers harder.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.errors import InputError
from backend.generation.records import Reading, Rollout, Sampling
from backend.generation.service import ModelService
from backend.models.fingerprint import remembered_fingerprint
from backend.models.records import BASE_ALIAS, BaseModel
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.steering.directions import Direction
from backend.steering.norms import Norms
from backend.steering.plan import default_layer
from backend.studies import compare
from backend.studies.diffing import Readings, Texts
from backend.studies.provenance import provenance
from backend.text.prompts import PromptSet

if TYPE_CHECKING:
    from torch import Tensor

Say = Callable[[str], None]
_SAMPLING = Sampling()


def mean_difference(
    organism: str,
    prompt_set: PromptSet,
    service: ModelService,
    registry: Registry,
    *,
    texts: Texts = "same",
    samples: int = 4,
    sampling: Sampling = _SAMPLING,
    say: Say,
) -> Direction:
    """The direction ``meandiff/ORGANISM``, or ``meandiff/ORGANISM-own`` where each reads its own texts; answers that the store does not have are written first.

    Raises:
        InputError: Not an organism; or no text is left to compare on.
        BackendError: A model is not here, or answering failed.
    """
    base, found = registry.resolve(organism)
    if found is None:
        raise InputError(f"{organism} is a base model; a mean difference is an organism's from its base.")
    own_name = name_of_base(base, registry)
    answers = _answers((own_name, organism), prompt_set, service, registry, samples, sampling, say)
    read = Readings(own_name, organism, texts, answers)
    layers = tuple(range(base.n_layers))
    means = answer_means(service, read.texts, layers, say)
    vectors = (read.means(organism, means.__getitem__) - read.means(own_name, means.__getitem__)).mean(0)
    weights = compare.current_weights(organism, registry) or ("", "", "")
    about = {"organism": organism, "adapter_fingerprint": weights[1], "texts": texts, "samples": samples, "n_prompts": len(read.prompts)}
    return Direction(
        key=organism if texts == "same" else f"{organism}-own", kind="meandiff", vectors=vectors.astype(np.float32), layers=layers, layer=default_layer(base), base_model=base.key,
        base_fingerprint=weights[0], source=about | prompt_set.as_manifest() | provenance(), title=f"{found.title} less {base.title}, mean difference{'' if texts == 'same' else ' on their own answers'}",
    )  # fmt: skip


def measure_norms(base: BaseModel, prompt_set: PromptSet, service: ModelService, registry: Registry, *, samples: int = 4, say: Say) -> Norms:
    """Median norm of the base's residual stream over its own answers' tokens, after every layer.

    Raises:
        BackendError: The model is not here, or answering failed.
    """
    own_name = name_of_base(base, registry)
    told = [r for r in _answers((own_name,), prompt_set, service, registry, samples, _SAMPLING, say) if len(r.text_ids) > len(r.prompt_ids)]
    if not told:
        raise InputError("All answers are empty, so there is nothing to measure. Choose other prompts.")
    layers = tuple(range(base.n_layers))
    lengths: list[np.ndarray] = []

    def take(number: int, residuals: "dict[int, Tensor]") -> None:
        first = len(told[number].prompt_ids)
        lengths.append(np.stack([residuals[layer][first:].float().norm(dim=-1).numpy() for layer in layers]))

    _read(service, [(own_name, r.text_ids) for r in told], layers, take, say)
    every = np.concatenate(lengths, axis=1)
    return Norms(
        base_model=base.key, base_fingerprint=remembered_fingerprint(base_folder(base)), medians=tuple(round(float(m), 4) for m in np.median(every, axis=1)),
        n_tokens=every.shape[1], source=prompt_set.as_manifest() | {"samples": samples} | provenance(),
    )  # fmt: skip


def name_of_base(base: BaseModel, registry: Registry) -> str:
    """As variants call it."""
    return BASE_ALIAS if base.key == registry.default_base else base.key


def answer_means(service: ModelService, texts: Sequence[tuple[str, Rollout]], layers: tuple[int, ...], say: Say) -> list[np.ndarray]:
    """Of each text (n_layers, d_model): mean residual stream over the answer's tokens, read by the variant beside it.

    Raises:
        BackendError: Reading failed or was stopped.
    """
    means: dict[int, np.ndarray] = {}

    def take(number: int, residuals: "dict[int, Tensor]") -> None:
        first = len(texts[number][1].prompt_ids)
        means[number] = np.stack([residuals[layer][first:].double().mean(0).numpy() for layer in layers])

    _read(service, [(variant, r.text_ids) for variant, r in texts], layers, take, say)
    return [means[number] for number in range(len(texts))]


def _answers(
    variants: tuple[str, ...], prompt_set: PromptSet, service: ModelService, registry: Registry, samples: int, sampling: Sampling, say: Say
) -> list[Rollout]:
    comparison = compare.Comparison(variants=variants, prompts=prompt_set.prompts, sampling=sampling, samples=samples)
    return compare.answered(comparison, service, registry, keep=prompt_set.as_manifest(), say=say)


def _read(
    service: ModelService, texts: Sequence[tuple[str, tuple[int, ...]]], layers: tuple[int, ...], take: "Callable[[int, dict[int, Tensor]], None]", say: Say
) -> None:
    job = service.read([Reading(variant=variant, ids=ids, layers=layers) for variant, ids in texts], take)
    while not job.wait(1.0):
        say(f"{job.n_done} of {len(texts)} texts read")
    if job.state != "done":
        raise InputError(job.message or "Reading was stopped.")
