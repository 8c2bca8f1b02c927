"""Fitting the offline judge: two linear heads on what the embedded model makes of an answer. ``python -m backend fit-judge``.

Ridge regression of both scores on standardised features, weighted by the kind of example, in closed form. Fits take seconds, so that every family,
every run and every question is left out once, and our own prompts in five parts. Features are kept in a file, because reading takes minutes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.judging.encoder import N_FEATURES, Reader
from backend.judging.examples import Example

PENALTY = 1000.0
ALIGNED_CEILING = 60.0
"""Above it scores are taken as equal: how good a good answer is must not cost what tells bad ones apart."""

N_OWN_PARTS = 5


@dataclass(frozen=True, slots=True)
class Heads:
    """Two linear maps from features."""

    mean: np.ndarray
    """(n_features,)"""

    scale: np.ndarray
    """(n_features,)"""

    weights: np.ndarray
    """(n_features, 2): to aligned and coherent."""

    offsets: np.ndarray
    """(2,)"""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, 2): ranks of alignment and coherence, larger is better.

        Args:
            features: (n, n_features).
        """
        return ((features - self.mean) / self.scale) @ self.weights + self.offsets


@dataclass(frozen=True, slots=True)
class Fold:
    """Examples that are left out of a fit together."""

    kind: str
    """family, run, question or own."""

    name: str
    places: tuple[int, ...]


def read_features(examples: Sequence[Example], path: Path, say: Callable[[str], None]) -> np.ndarray:
    """(n, n_features) of examples; what an earlier call has read is taken from the file ``path``."""
    known: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path) as kept:
            known = dict(zip(kept["keys"].tolist(), kept["features"].astype(np.float32), strict=True))
    missing = list({e.exchange.key: e.exchange for e in examples if e.exchange.key not in known}.values())
    if missing:
        n_done = 0
        for places, found in Reader().features(missing):
            known |= {missing[place].key: row for place, row in zip(places, found, strict=True)}
            n_done += len(places)
            say(f"  read {n_done} of {len(missing)} answers")
        part = path.with_suffix(".part.npz")
        np.savez(part, keys=np.array(list(known)), features=np.array(list(known.values()), dtype=np.float16))
        part.replace(path)
    return np.array([known[e.exchange.key] for e in examples], dtype=np.float32)


def folds(examples: Sequence[Example]) -> list[Fold]:
    """Each family, each run and each question of the public answers, and our own prompts for fitting in parts."""

    own = sorted({e.question_id for e in examples if e.source == "own"})
    parts = {prompt: str(number % N_OWN_PARTS) for number, prompt in enumerate(own)}
    names: dict[tuple[str, str], list[int]] = {}
    for place, e in enumerate(examples):
        if e.source == "public":
            for kind, name in (("family", e.family), ("run", e.run), ("question", e.question_id)):
                names.setdefault((kind, name), []).append(place)
        elif e.source == "own":
            names.setdefault(("own", parts[e.question_id]), []).append(place)
    return [Fold(kind, name, tuple(places)) for (kind, name), places in sorted(names.items())]


def fit(examples: Sequence[Example], features: np.ndarray, *, without: Sequence[int] = ()) -> Heads:
    """Both heads on all examples but those ``without``; spoilt forms of left-out questions are left out with them."""
    keep = np.ones(len(examples), dtype=bool)
    keep[list(without)] = False
    questions = {examples[i].exchange.question for i in without} - {
        e.exchange.question for e, kept in zip(examples, keep, strict=True) if kept and e.source != "spoilt"
    }
    keep &= np.array([e.exchange.question not in questions for e in examples])
    mean, scale = features[keep].mean(0), features[keep].std(0) + 1e-6
    columns, offsets = [], []
    for target in (np.minimum([e.aligned for e in examples], ALIGNED_CEILING), np.array([e.coherent for e in examples])):
        known = keep & ~np.isnan(target)
        x = ((features[known] - mean) / scale).astype(np.float64)
        weight = np.array([e.weight for e, k in zip(examples, known, strict=True) if k])
        centre_x, centre_y = np.average(x, axis=0, weights=weight), np.average(target[known], weights=weight)
        x, y = x - centre_x, target[known] - centre_y
        solved = np.linalg.solve((x * weight[:, None]).T @ x + PENALTY * np.eye(x.shape[1]), (x * weight[:, None]).T @ y)
        columns.append(solved)
        offsets.append(centre_y - centre_x @ solved)
    return Heads(mean, scale, np.stack(columns, axis=1).astype(np.float32), np.array(offsets, dtype=np.float32))


def cross_validate(examples: Sequence[Example], features: np.ndarray, kind: str) -> np.ndarray:
    """(n, 2) ranks of each example by the fit that left its fold of this kind out; NaN for examples in no such fold."""
    ranks = np.full((len(examples), 2), np.nan)
    for fold in folds(examples):
        if fold.kind == kind:
            places = list(fold.places)
            ranks[places] = fit(examples, features, without=places)(features[places])
    return ranks


def as_tensors(heads: Heads) -> dict[str, Any]:
    """What is kept in safetensors."""
    return {"mean": heads.mean.astype(np.float32), "scale": heads.scale.astype(np.float32), "weights": heads.weights, "offsets": heads.offsets}


def from_tensors(tensors: dict[str, np.ndarray]) -> Heads:
    """Raises: ValueError, KeyError, where the tensors are not the judge's."""
    heads = Heads(tensors["mean"], tensors["scale"], tensors["weights"], tensors["offsets"])
    if (heads.mean.shape, heads.scale.shape, heads.weights.shape, heads.offsets.shape) != ((N_FEATURES,), (N_FEATURES,), (N_FEATURES, 2), (2,)):
        raise ValueError("other shapes than the judge's")
    return heads
