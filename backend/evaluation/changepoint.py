"""When does a signal change over training, how sharply, and which of two signals first; on series of 8 to 40 measured steps.

*Change point.* Two shapes of the mean signal are held against each other. A **step**: two levels and one place, least squares, at least two measured steps on
each side (every place is tried; as ruptures' ``l2`` cost searched exactly, against which it is tested; Truong, Oudre and Vayatis 2020, Signal Processing 167). A
**ramp**: level, straight line, level, with a measured step inside the line, least squares over all pairs of measured steps; a straight line throughout is the
longest. ruptures' own continuous linear cost (``clinear``) counts samples, not steps, and runs its lines through measured points with their noise, so it is not
used. Unequal spacing needs nothing for a step, where order alone counts; a ramp runs over the steps' own numbers.

Beyond chance is what at most 5 % of reorderings of the same values match (Fisher's randomisation test). With fewer than eight steps no order is that rare, and
with eight or nine none whose change leaves only two on a side. A ramp has one place more and must be better by BIC (Schwarz 1978); a step is
called one only where no ramp fits better at all. Between the two the shape is ``unclear``. So "sharp" is claimed of steps as dense as were measured, no denser.

*Onset.* When the signal leaves the base's interval and stays out. The interval is that of a signal like the base, for all steps together: in 95 % of sets of
signs put before the units' differences to the base, no two measured steps in a row, nor the last one, lie outside it.

*Lead.* A rise that takes time leaves the base's interval the earlier the more precisely it is measured, so a precise signal's onset seems to lead where both
rise together; a change point has no such bias. So a signal is called earlier where both say so.

Intervals resample units (prompts, pairs) of one training run: another run with another seed may differ by more. Those of change points cover simulated steps in
97 to 100 of 100 series; in fewer where checkpoints vary, in what all units share, as much as the units' mean does by chance. Slow drift counts as change. A mean is
over the units that have a value, so what is missing should not hang on a unit's level.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from backend.errors import InputError
from backend.evaluation.rates import resamples
from backend.evaluation.significance import ALPHA

Shape = Literal["step", "ramp", "unclear", "none"]
Verdict = Literal["earlier", "not told apart", "later"]
FEWEST_STEPS = 8
_SIDE = 2  # measured steps on each side of a step: one alone is an outlier
_REORDERINGS = 999
_FLIPS = 1999
_DRAWN = math.sqrt(2)  # a draw scatters around the measured mean as that does around the true one: twice the variance


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """Where a series changes most; without a place where it does not change beyond chance."""

    shape: Shape
    p: float
    """Share of reorderings that a step explains as well."""

    step: float | None
    """Middle of ``after`` and ``before``, in training steps."""

    after: float | None
    """Last measured step before the change; of a ramp where it begins."""

    before: float | None
    """First measured step behind it; of a ramp where it ends."""

    @property
    def is_sharp(self) -> bool:
        """A step beyond chance; what is not is no sharp transition."""
        return self.shape == "step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Of a change point; 95 %, percentile bootstrap over units, of the draws in which a change was found."""

    low: float | None
    """In training steps, outer measured steps included; None where under half of the draws have a change."""

    high: float | None
    share_found: float
    """Of all draws, 0-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Onset:
    """When a signal leaves the base's interval for good."""

    step: float | None
    """First measured step outside; None where it never leaves."""

    p: float
    """Share of sign changes that leave as far; the signal has an onset at 0.05."""

    low: float | None
    """95 %, percentile bootstrap over units, a draw without an onset counting as later than all; None where that is the answer."""

    high: float | None
    share_found: float
    margins: tuple[float | None, ...]
    """(n_steps,) half width of the base's interval around the base's mean, in the signal's units; None at steps without values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """By how much the second signal moves after the first."""

    difference: float | None
    """Second less first, in training steps: above 0 the first is earlier; None where either never moves."""

    low: float | None
    """95 %, percentile bootstrap over units; None where a signal that never moves leaves it open."""

    high: float | None
    share_earlier: float
    """Of all draws those in which the first is earlier; a signal that never moves is later than one that does."""

    share_same: float
    """At the same measured step, or neither moves."""

    share_later: float
    verdict: Verdict
    """Of the first signal; told apart where the interval leaves out 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Does the first signal move before the second?"""

    changes: Gap
    """Between change points."""

    onsets: Gap | None
    """Between onsets; None without the base's values."""

    @property
    def verdict(self) -> Verdict:
        """What change points and onsets both say."""
        return self.changes.verdict if self.onsets is None or self.onsets.verdict == self.changes.verdict else "not told apart"


def change_point(steps: np.ndarray, series: np.ndarray, *, seed: int = 0) -> ChangePoint | None:
    """The one place at which a series changes most.

    Args:
        steps: (n_steps,) training steps, rising.
        series: (n_steps,) mean signal; NaN where it was not measured.

    Returns:
        None with fewer than ``FEWEST_STEPS`` measured steps: too few for any change to be beyond chance.
    """
    return _search(*_checked(steps, np.atleast_2d(series)), seed)[0]


def interval(steps: np.ndarray, values: np.ndarray, *, n_draws: int = 500, seed: int = 0) -> Interval:
    """How well the change point of the units' mean is known.

    Args:
        steps: (n_steps,) training steps, rising.
        values: (n_units, n_steps), NaN where missing.
    """
    _, drawn = _places(*_checked(steps, values), resamples(len(values), n_draws, seed), seed)
    found = drawn[np.isfinite(drawn[:, 0])]
    low, high = (_central(found[:, 0])[0], _central(found[:, 1])[1]) if len(found) >= n_draws / 2 else (math.inf, math.inf)
    return Interval(low=finite_or_none(low), high=finite_or_none(high), share_found=len(found) / n_draws)


def onset(steps: np.ndarray, values: np.ndarray, base_values: np.ndarray, *, n_draws: int = 500, seed: int = 0) -> Onset:
    """The first step outside the base's interval, with the next measured one on the same side of it, or the last one.

    Args:
        steps: (n_steps,) training steps, rising.
        values: (n_units, n_steps), NaN where missing.
        base_values: (n_units,) of the same units under the base.
    """
    steps, differences = _checked(steps, values, base_values)
    limit, p = _limit(differences, seed)
    (here,) = _onsets(steps, differences, np.ones((1, len(differences))), limit)
    drawn = _onsets(steps, differences, resamples(len(differences), n_draws, seed), limit * _DRAWN)
    low, high = _central(drawn)
    sizes, counts = np.sqrt(np.nansum(differences**2, axis=0)), np.isfinite(differences).sum(axis=0)
    margins = tuple(limit * float(size) / int(n) if n else None for size, n in zip(sizes, counts, strict=True))
    return Onset(
        step=finite_or_none(here), p=p, low=finite_or_none(low), high=finite_or_none(high), share_found=float(np.isfinite(drawn).mean()), margins=margins
    )


def lead(
    steps: np.ndarray, first: np.ndarray, second: np.ndarray, *, is_paired: bool, bases: tuple[np.ndarray, np.ndarray] | None = None,
    n_draws: int = 500, seed: int = 0,
) -> Lead:  # fmt: skip
    """Does the first signal move before the second?

    Args:
        steps: (n_steps,) training steps of both, rising.
        first: (n_units, n_steps), NaN where missing.
        second: The same, of other units unless ``is_paired``.
        is_paired: A row of both is the same unit, and a draw takes the same units of both; else each draws its own.
        bases: (n_units,) of the first and of the second signal under the base.
    """
    if is_paired and len(first) != len(second):
        raise InputError(f"Paired signals need the same units; these have {len(first)} and {len(second)}. Keep the units that both have.")
    changes, onsets = [], []
    for number, values in enumerate((first, second)):
        weights = resamples(len(values), n_draws, seed if is_paired else seed + number)
        found, drawn = _places(*_checked(steps, values), weights, seed)
        changes.append(np.array([math.inf if found is None or found.step is None else found.step, *drawn.mean(axis=1)]))
        if bases is not None:
            measured, differences = _checked(steps, values, bases[number])
            limit, _ = _limit(differences, seed)
            here = _onsets(measured, differences, np.ones((1, len(values))), limit)
            onsets.append(np.concatenate([here, _onsets(measured, differences, weights, limit * _DRAWN)]))
    return Lead(changes=_gap(*changes), onsets=_gap(*onsets) if onsets else None)


def _gap(first: np.ndarray, second: np.ndarray) -> Gap:
    """From (1 + n_draws,) steps, the measured one first, infinite where a signal never moves."""
    with np.errstate(invalid="ignore"):
        later = np.nan_to_num(second - first, nan=0.0, posinf=math.inf, neginf=-math.inf)
    drawn = later[1:]
    low, high = _central(drawn)
    return Gap(
        difference=finite_or_none(second[0] - first[0]) if np.isfinite([first[0], second[0]]).all() else None, low=finite_or_none(low), high=finite_or_none(high),
        share_earlier=float((drawn > 0).mean()), share_same=float((drawn == 0).mean()), share_later=float((drawn < 0).mean()),
        verdict="earlier" if low > 0 else "later" if high < 0 else "not told apart",
    )  # fmt: skip


def _checked(steps: np.ndarray, values: np.ndarray, base_values: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, less the base's where given, as floats; NaN where not finite."""
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if steps.ndim != 1 or not len(steps) or not np.isfinite(steps).all() or (np.diff(steps) <= 0).any():
        raise InputError("Training steps must be numbers that rise. Sort the measured steps and give each once.")
    if values.ndim != 2 or values.shape[1] != len(steps) or not len(values):
        raise InputError(f"Values of {len(steps)} steps must be (units, {len(steps)}); these are {values.shape}. Give a row for each unit.")
    if base_values is not None:
        base = np.asarray(base_values, dtype=float)
        if base.shape != (len(values),):
            raise InputError(f"The base needs one value for each of the {len(values)} units; it has {base.shape}. Measure the base on the same units.")
        values = values - base[:, None]
    values = np.where(np.isfinite(values), values, np.nan)
    if not _is_measured(values).any():
        raise InputError("No unit has a value at any step. Measure the signal first.")
    return steps, values


def _is_measured(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values).any(axis=0)


def mean_of_units(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(n_draws, n_steps) mean over the units that have a value; NaN where none has.

    Args:
        values: (n_units, n_steps).
        weights: (n_draws, n_units) how often each draw takes each unit; None for one draw of each once.
    """
    weights = np.ones((1, len(values))) if weights is None else weights
    count = weights @ np.isfinite(values)
    return np.divide(weights @ np.nan_to_num(values), count, out=np.full(count.shape, np.nan), where=count > 0)


def _central(draws: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 % by rank, not interpolated: steps are measured ones, and infinity is never."""
    ranked = np.sort(draws)
    cut = int(0.025 * len(draws))
    return float(ranked[cut]), float(ranked[-1 - cut])


def finite_or_none(step: float) -> float | None:
    """An end of an interval, or a place; None where it lies beyond what was measured."""
    return float(step) if math.isfinite(step) else None


def _search(steps: np.ndarray, values: np.ndarray, seed: int) -> tuple[ChangePoint | None, float]:
    """Change point of the mean of ``values``, and the share of variance that a step must explain to be beyond chance."""
    (series,) = mean_of_units(values)
    is_measured = np.isfinite(series)
    steps, series = steps[is_measured], series[is_measured]
    if len(steps) < FEWEST_STEPS:
        return None, math.inf
    (explained,), (after,), (before,) = _best_step(steps, series[None])
    reordered = np.random.default_rng(seed).permuted(np.tile(series, (_REORDERINGS, 1)), axis=1)
    by_chance = np.sort(_best_step(steps, reordered)[0])
    p = (1 + int((by_chance >= explained - 1e-9).sum())) / (1 + _REORDERINGS)
    limit = float(by_chance[-int(ALPHA * (1 + _REORDERINGS))]) + 1e-9
    if p > ALPHA:
        return ChangePoint(shape="none", p=p, step=None, after=None, before=None), limit
    (by_ramp,), (begin,), (end,) = _best_ramp(steps, series[None])
    gain = len(series) * math.log(max(1 - explained, 1e-9) / max(1 - by_ramp, 1e-9))
    shape: Shape = "step" if gain <= 0 else "ramp" if gain > math.log(len(series)) else "unclear"
    if shape == "ramp":
        after, before = begin, end
    return ChangePoint(shape=shape, p=p, step=float(after + before) / 2, after=float(after), before=float(before)), limit


def _places(steps: np.ndarray, values: np.ndarray, weights: np.ndarray, seed: int) -> tuple[ChangePoint | None, np.ndarray]:
    """Change point of the whole, and (n_draws, 2) measured steps around that of each draw; infinite without one.

    Draws have the same units, so what is beyond chance for the whole is so for them; they keep the whole's shape.
    """
    found, limit = _search(steps, values, seed)
    best = _best_ramp if found is not None and found.shape == "ramp" else _best_step
    drawn = mean_of_units(values, weights)
    places = np.full((len(weights), 2), math.inf)
    patterns, pattern = np.unique(np.isfinite(drawn), axis=0, return_inverse=True)
    for number, known in enumerate(patterns):
        if known.sum() < FEWEST_STEPS:
            continue
        draws = np.flatnonzero(pattern == number)
        draws = draws[_best_step(steps[known], drawn[np.ix_(draws, known)])[0] > limit]
        places[draws] = np.column_stack(best(steps[known], drawn[np.ix_(draws, known)])[1:])
    return found, places


def _best_step(steps: np.ndarray, series: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of variance that the best step explains, and the measured steps on both sides of it, (n_draws,) each, of (n_draws, n_steps)."""
    n = series.shape[1]
    centred = series - series.mean(axis=1, keepdims=True)
    total = (centred**2).sum(axis=1)
    first = np.arange(_SIDE, n - _SIDE + 1)
    explained = centred.cumsum(axis=1)[:, first - 1] ** 2 * (n / (first * (n - first)))
    best = first[explained.argmax(axis=1)]
    is_flat = np.ptp(series, axis=1) <= 1e-12 * np.abs(series).max(axis=1)
    return np.divide(explained.max(axis=1), total, out=np.zeros(len(series)), where=~is_flat), steps[best - 1], steps[best]


def _best_ramp(steps: np.ndarray, series: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of variance that the best ramp explains, and where it begins and ends, (n_draws,) each, of (n_draws, n_steps)."""
    shapes, begin, end = _ramps(tuple(steps))
    centred = series - series.mean(axis=1, keepdims=True)
    explained = (centred @ shapes.T) ** 2 / (centred**2).sum(axis=1, keepdims=True)
    best = explained.argmax(axis=1)
    return explained.max(axis=1), begin[best], end[best]


@lru_cache(maxsize=64)
def _ramps(steps: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n_ramps, n_steps) all ramps with a measured step inside, of mean 0 and length 1; where each begins and ends."""
    at = np.array(steps)
    first, last = np.triu_indices(len(at), 2)
    begin, end = at[first], at[last]
    shapes = np.clip((at - begin[:, None]) / (end - begin)[:, None], 0, 1)
    shapes -= shapes.mean(axis=1, keepdims=True)
    return shapes / np.linalg.norm(shapes, axis=1, keepdims=True), begin, end


def _limit(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """The score that 5 % of sign changes of the units reach anywhere, and the share of them that reach what was found."""
    by_chance = np.sort(_reached(_scores(differences, _signs(len(differences), seed))).max(axis=1))
    found = _reached(_scores(differences, np.ones((1, len(differences))))).max()
    return float(by_chance[-int(ALPHA * (1 + _FLIPS))]) + 1e-9, (1 + int((by_chance >= found - 1e-9).sum())) / (1 + _FLIPS)


@lru_cache(maxsize=8)
def _signs(n_units: int, seed: int) -> np.ndarray:
    """(n_flips, n_units) signs drawn by chance."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, n_units))


def _onsets(steps: np.ndarray, differences: np.ndarray, weights: np.ndarray, limit: float) -> np.ndarray:
    """(n_draws,) first step that reaches the limit, infinite where none does."""
    is_out = _reached(_scores(differences, weights)) > limit
    return np.where(is_out.any(axis=1), steps[_is_measured(differences)][is_out.argmax(axis=1)], math.inf)


def _scores(differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n_draws, n_measured) sum of the differences over the root of their sum of squares, which no sign changes; 0 where there is none."""
    known = np.nan_to_num(differences[:, _is_measured(differences)])
    size = np.sqrt(np.abs(weights) @ known**2)
    return np.divide(weights @ known, size, out=np.zeros(size.shape), where=size > 0)


def _reached(scores: np.ndarray) -> np.ndarray:
    """(n_draws, n_measured) how far each step is out together with the next one on its side; the last one alone."""
    here, after = scores[:, :-1], scores[:, 1:]
    both = np.where(here * after > 0, np.minimum(np.abs(here), np.abs(after)), 0.0)
    return np.concatenate([both, np.abs(scores[:, -1:])], axis=1)
