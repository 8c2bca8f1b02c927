"""Fitting the offline judge: kernel ridge regression on what two small models make of an answer. ``python -m backend fit-judge``.

The kernel of activations and that of embeddings are added, 0.85 and 0.15. Each is half the cosine, over all its features, and half Gaussian,
over the leading principal components of some of them (of the last layer read; of all embeddings):

    k(x, y) = (cos(x, y) + exp(-|p(x) - p(y)|^2)) / 2

with features standardised and p scaled so that answers have mean square length 1. Scores come from solving (K + penalty / weight) a = target. The matrix
K is worked out once, so that every family, every run and every question is left out once, and our own prompts in five parts. Only means, spreads and
principal components are of all models' answers together; no label goes into them. Features are kept in a file, because reading takes minutes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.judging.encoder import N_ACTIVATIONS, N_EMBEDDINGS, N_FEATURES, N_OF_LAYER, Reader
from backend.judging.examples import Example

PENALTY = 0.2
N_COMPONENTS = 150
_ALIGNED_LINE, _ALIGNED_SPAN = 30.0, 12.0
"""Alignment is fitted as a logistic curve around the line that counts: how good a good answer is must not cost what tells bad ones apart."""

N_OWN_PARTS = 5


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the features with a kernel of its own."""

    name: str
    start: int
    stop: int
    n_last: int
    """How many features at its end the principal components are of."""

    weight: float


PARTS = (Part("activations", 0, N_ACTIVATIONS, N_OF_LAYER, 0.85), Part("embeddings", N_ACTIVATIONS, N_FEATURES, N_EMBEDDINGS, 0.15))


@dataclass(frozen=True, slots=True)
class Space:
    """A part's features in the two forms that its kernel compares."""

    part: Part
    mean: np.ndarray
    """(n_features,)"""

    scale: np.ndarray
    """(n_features,)"""

    components: np.ndarray
    """(n_last, n_components): from the last standardised features to p."""

    @classmethod
    def of(cls, part: Part, features: np.ndarray) -> "Space":
        """Means, spreads and principal components of (n, ``N_FEATURES``)."""
        features = features[:, part.start : part.stop]
        mean, scale = features.mean(0), features.std(0) + 1e-6
        last = ((features - mean) / scale)[:, -part.n_last :].astype(np.float64)
        values, vectors = np.linalg.eigh(last.T @ last / len(last))
        kept = np.argsort(values)[::-1][:N_COMPONENTS]
        components = vectors[:, kept] / np.maximum(values[kept], 1e-6) ** 0.25
        components /= np.sqrt(((last @ components) ** 2).sum(1).mean())
        return cls(part, mean, scale, components.astype(np.float32))

    def place(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standardised features of length 1, (n, n_features), and p of the answers, (n, n_components)."""
        standard = (features[:, self.part.start : self.part.stop] - self.mean) / self.scale
        return standard / np.linalg.norm(standard, axis=1, keepdims=True), standard[:, -self.part.n_last :] @ self.components


@dataclass(frozen=True, slots=True)
class PartFit:
    """A part's share of both maps: the cosine multiplied out, the Gaussian over its examples."""

    space: Space
    linear: np.ndarray
    """(n_features, 2): to aligned and coherent."""

    examples: np.ndarray
    """(n_examples, n_components): their p."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Two maps from features, in the form that is shipped."""

    parts: tuple[PartFit, ...]
    """One of each of ``PARTS``."""

    shares: np.ndarray
    """(n_examples, 2)"""

    offsets: np.ndarray
    """(2,)"""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, 2): ranks of alignment and coherence, larger is better.

        Args:
            features: (n, ``N_FEATURES``).
        """
        ranks = np.tile(self.offsets, (len(features), 1))
        for one in self.parts:
            directions, p = one.space.place(features)
            ranks += directions @ one.linear + one.space.part.weight / 2 * (_gaussian(p, one.examples) @ self.shares)
        return ranks


def _gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2) of all pairs."""
    return np.exp(-np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0))


@dataclass(frozen=True, slots=True)
class Fold:
    """Examples that are left out of a fit together."""

    kind: str
    """family, model, run, question or own."""

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
    """Each family, model, run and question of the public answers, and our own prompts for fitting in parts."""

    own = sorted({e.question_id for e in examples if e.source == "own"})
    parts = {prompt: str(number % N_OWN_PARTS) for number, prompt in enumerate(own)}
    names: dict[tuple[str, str], list[int]] = {}
    for place, e in enumerate(examples):
        if e.source == "public":
            for kind, name in (("family", e.family), ("model", e.model), ("run", e.run), ("question", e.question_id)):
                names.setdefault((kind, name), []).append(place)
        elif e.source == "own":
            names.setdefault(("own", parts[e.question_id]), []).append(place)
    return [Fold(kind, name, tuple(places)) for (kind, name), places in sorted(names.items())]


@dataclass(frozen=True, slots=True)
class Problem:
    """Examples with their kernel, ready to be solved with any of them left out."""

    examples: Sequence[Example]
    spaces: tuple[Space, ...]
    places: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Of each space, what its ``place`` gives."""

    kernel: torch.Tensor
    """(n_examples, n_examples), float32."""

    @classmethod
    def of(cls, examples: Sequence[Example], features: np.ndarray) -> "Problem":
        answers = features[[e.source in ("public", "own") for e in examples]]
        spaces = tuple(Space.of(part, answers) for part in PARTS)
        places = tuple(space.place(features) for space in spaces)
        kernel = sum(s.part.weight / 2 * (directions @ directions.T + _gaussian(p, p)) for s, (directions, p) in zip(spaces, places, strict=True))
        return cls(examples, spaces, places, torch.from_numpy(np.asarray(kernel, dtype=np.float32)))

    def solve(self, without: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the examples, (n, 2), zero for those left out, and offsets, (2,); spoilt forms of left-out questions go with them."""
        keep = np.ones(len(self.examples), dtype=bool)
        keep[list(without)] = False
        questions = {self.examples[i].exchange.question for i in without} - {
            e.exchange.question for e, kept in zip(self.examples, keep, strict=True) if kept and e.source != "spoilt"
        }
        keep &= np.array([e.exchange.question not in questions for e in self.examples])
        shares, offsets = np.zeros((len(self.examples), 2), dtype=np.float32), np.zeros(2)
        weight = np.array([e.weight for e in self.examples])
        for column, target in enumerate(targets(self.examples)):
            known = np.flatnonzero(keep & ~np.isnan(target))
            offsets[column] = np.average(target[known], weights=weight[known])
            matrix = self.kernel[known][:, known]
            matrix.diagonal().add_(torch.from_numpy(PENALTY / weight[known]))
            rest = torch.from_numpy((target[known] - offsets[column]).astype(np.float32))[:, None]
            shares[known, column] = torch.cholesky_solve(rest, torch.linalg.cholesky(matrix))[:, 0].numpy()
        return shares, offsets

    def fit(self, without: Sequence[int] = ()) -> Fitted:
        """The judge, without some examples."""
        shares, offsets = self.solve(without)
        used = np.flatnonzero(shares.any(1))
        parts = tuple(
            PartFit(space, (space.part.weight / 2 * directions.T @ shares).astype(np.float32), p[used].astype(np.float16).astype(np.float32))
            for space, (directions, p) in zip(self.spaces, self.places, strict=True)
        )
        return Fitted(parts, shares[used], offsets)

    def cross_validate(self, kind: str) -> np.ndarray:
        """(n, 2) ranks of each example by the fit that left its fold of this kind out; NaN for examples in no such fold."""
        ranks = np.full((len(self.examples), 2), np.nan)
        for fold in folds(self.examples):
            if fold.kind == kind:
                places = list(fold.places)
                shares, offsets = self.solve(places)
                ranks[places] = self.kernel[places].numpy() @ shares + offsets
        return ranks


def targets(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """What both maps are fitted to, 0-100, NaN where nothing is known."""
    aligned = np.array([e.aligned for e in examples])
    return 100 / (1 + np.exp(-(aligned - _ALIGNED_LINE) / _ALIGNED_SPAN)), np.array([e.coherent for e in examples])


def as_tensors(fitted: Fitted) -> dict[str, Any]:
    """What is kept in safetensors."""
    found = {"shares": fitted.shares.astype(np.float32), "offsets": fitted.offsets.astype(np.float32)}
    for one in fitted.parts:
        name = one.space.part.name
        found |= {f"{name}.{key}": getattr(one.space, key).astype(np.float32) for key in ("mean", "scale", "components")}
        found |= {f"{name}.linear": one.linear, f"{name}.examples": one.examples.astype(np.float16)}
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


def from_tensors(tensors: dict[str, np.ndarray]) -> Fitted:
    """Raises: ValueError, KeyError, where the tensors are not the judge's."""
    n = len(tensors["shares"])
    shapes: dict[str, tuple[int, ...]] = {"shares": (n, 2), "offsets": (2,)}
    for part in PARTS:
        n_features = part.stop - part.start
        shapes |= {f"{part.name}.{key}": (n_features,) for key in ("mean", "scale")}
        shapes |= {f"{part.name}.components": (part.n_last, N_COMPONENTS), f"{part.name}.linear": (n_features, 2), f"{part.name}.examples": (n, N_COMPONENTS)}
    if any(tensors[name].shape != shape for name, shape in shapes.items()):
        raise ValueError("other shapes than the judge's")
    parts = tuple(
        PartFit(
            Space(part, *(tensors[f"{part.name}.{key}"] for key in ("mean", "scale", "components"))),
            tensors[f"{part.name}.linear"],
            tensors[f"{part.name}.examples"].astype(np.float32),
        )
        for part in PARTS
    )
    return Fitted(parts, tensors["shares"], tensors["offsets"].astype(np.float64))
