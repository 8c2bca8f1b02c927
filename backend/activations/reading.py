"""Texts read through variants and an autoencoder: the model service gives the residual stream, what comes out is sparse latents.

The pass ends at the autoencoder's layer, variants and texts share batches with whatever else is going on, and only latents are kept.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.errors import InputError, WeightsError
from backend.generation.jobs import Job
from backend.generation.records import Reading
from backend.generation.service import ModelService
from backend.models.records import BaseModel, Dtype
from backend.saes.latents import SparseLatents
from backend.saes.loaded import loaded
from backend.saes.records import SaeRecord

if TYPE_CHECKING:
    from torch import Tensor

    from backend.saes.sae import Sae

_AT_ONCE = 256  # tokens encoded together: 8,192 latents take 8 MB, 131,072 take 134 MB


class LatentsJob:
    """Texts on their way through variants and an autoencoder."""

    def __init__(self, job: Job, results: list[SparseLatents | None]) -> None:
        self.job = job
        self._results = results

    @property
    def is_done(self) -> bool:
        return self.job.state == "done"

    def wait(self) -> list[SparseLatents]:
        """All of them, when the last is read.

        Raises:
            InputError: The job failed or was stopped; says why.
        """
        self.job.wait()
        if not self.is_done:
            raise InputError(self.job.message or "Reading was stopped.")
        return [found for found in self._results if found is not None]


def start(
    service: ModelService,
    record: SaeRecord,
    base: BaseModel,
    texts: Sequence[tuple[str, Sequence[int]]],
    *,
    dtype: Dtype | None = None,
    owner: str = "",
    on_residual: "Callable[[int, Tensor], None] | None" = None,
) -> LatentsJob:
    """Put texts in line to be read.

    Args:
        texts: Variant and ids of each.
        on_residual: Called in the worker with a text's number and its residual stream at the autoencoder's layer, (n_tokens, d_model), float32.

    Raises:
        InputError, ContextLengthError, WeightsMissingError, MemoryBudgetError: As ``ModelService.read`` and ``loaded``.
    """
    sae = loaded(record, base).sae  # on the caller's thread: the worker decodes for everybody
    results: list[SparseLatents | None] = [None] * len(texts)

    def take(number: int, residuals: "dict[int, Tensor]") -> None:
        residual = residuals[record.layer].float()
        results[number] = encode(sae, residual)
        if on_residual is not None:
            on_residual(number, residual)

    readings = [Reading(variant=variant, ids=tuple(ids), layers=(record.layer,), dtype=dtype) for variant, ids in texts]
    return LatentsJob(service.read(readings, take, owner=owner), results)


def encode(sae: "Sae", residual: "Tensor") -> SparseLatents:
    """Sparse latents of a residual stream, (n_tokens, d_model).

    Raises:
        WeightsError: The residual stream is not finite.
    """
    if not residual.isfinite().all():
        raise WeightsError("The model's activations are no longer finite on this text, so it has no latents. Its weights may be damaged.")
    counts, latents, values = [], [], []
    for part in residual.split(_AT_ONCE):
        active = sae.encode(part)
        places = active.nonzero()
        strengths = active[places[:, 0], places[:, 1]].float().cpu()
        places = places.cpu()
        counts.append(np.bincount(places[:, 0].numpy(), minlength=len(part)))
        latents.append(places[:, 1].numpy().astype(np.int32))
        values.append(strengths.numpy())
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return SparseLatents(sae.n_latents, starts, np.concatenate(latents), np.concatenate(values))
