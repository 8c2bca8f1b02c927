"""How an adapter moves through training: distance from its start, the direction it writes, and that direction's path.

A module's change is ``D = scale * B A``. Its direction is the leading left singular vector of D, of one rank the LoRA B vector itself; an adapter's is that of
all its modules one after another, each of length 1 and signed like the last step's (Turner et al. 2025 follow the B vector of one rank-1 adapter).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.models.adapters import Adapter, LoraWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An adapter at one step."""

    distance: float
    """Frobenius norm of its change less that of the start, over all modules."""

    cosine_end: float | None
    """Of its direction with the last step's; None where it changes nothing yet."""

    cosine_previous: float | None
    """Of its direction with that of the step before; None for the first."""

    pc1: float | None
    pc2: float | None
    """Coordinates of the direction on the two axes along which the directions of all steps vary most."""


@torch.no_grad()
def path(adapters: Mapping[int, Adapter], start: Adapter | None = None) -> dict[int, Place]:
    """Where an adapter stands at each step.

    Args:
        adapters: By step, ascending, of the same modules.
        start: What the training went on from; None for a fresh adapter, whose change is zero.
    """
    steps = list(adapters)
    directions = {step: {name: _direction(w) for name, w in adapter.modules.items()} for step, adapter in adapters.items()}
    end = directions[steps[-1]]
    whole: dict[int, np.ndarray | None] = {}
    for step in steps:
        parts = [_signed(directions[step][name], end[name]) for name in end]
        whole[step] = None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None]).numpy() / math.sqrt(len(parts))
    told = [step for step in steps if whole[step] is not None]
    stacked = [own for own in whole.values() if own is not None]
    coordinates = _principal(np.stack(stacked)) if len(told) > 2 else np.full((len(told), 2), np.nan)
    found = {}
    for number, step in enumerate(steps):
        own, previous = whole[step], whole[steps[number - 1]] if number else None
        at = coordinates[told.index(step)] if own is not None else None
        found[step] = Place(
            distance=_distance(adapters[step], start), cosine_end=_cosine(own, whole[steps[-1]]), cosine_previous=_cosine(own, previous),
            pc1=None if at is None or np.isnan(at[0]) else float(at[0]), pc2=None if at is None or np.isnan(at[1]) else float(at[1]),
        )  # fmt: skip
    return found


def _direction(w: LoraWeights) -> Tensor | None:
    """(out_features,): None where the module changes nothing."""
    b, a = w.b.double(), w.a.double()
    if not b.any() or not a.any():
        return None
    if b.shape[1] == 1:
        return b[:, 0] / b[:, 0].norm()
    left, small_b = torch.linalg.qr(b)
    _, small_a = torch.linalg.qr(a.T)
    u, _, _ = torch.linalg.svd(small_b @ small_a.T)
    return left @ u[:, 0]


def _signed(direction: Tensor | None, like: Tensor | None) -> Tensor | None:
    if direction is None or like is None:
        return None
    return -direction if float(direction @ like) < 0 else direction


def _cosine(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    if first is None or second is None:
        return None
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def _distance(adapter: Adapter, start: Adapter | None) -> float:
    """By products of the small matrices alone: |BA|^2 = sum of (B'B) * (AA')."""
    total = 0.0
    for name, w in adapter.modules.items():
        b, a = w.scale * w.b.double(), w.a.double()
        if start is not None and (s := start.modules.get(name)) is not None:
            b, a = torch.cat([b, -s.scale * s.b.double()], dim=1), torch.cat([a, s.a.double()])
        total += float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(max(0.0, total))


def _principal(rows: np.ndarray) -> np.ndarray:
    """(n, 2): coordinates on the first two principal axes, signed so that the last row's are not negative."""
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    found = u[:, :2] * s[:2]
    if found.shape[1] < 2:
        found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    return found * np.where(found[-1] < 0, -1.0, 1.0)
