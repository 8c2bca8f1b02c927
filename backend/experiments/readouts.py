"""What a training study says, in numbers: how many rows halve a measure, when it is back, what leaves the base first.

*The base's interval* is that of a model like the base on the same prompts or pairs, for all points together (``changepoint.onset``): it compares unit by unit, so it
is narrower than the interval of the base's own mean. *Half-way* and *halved* count for good: where a curve goes back up, the last crossing is told, with straight
lines between measured points. Intervals are 95 %, percentile bootstrap over units, the same draw for all points.
"""

import math
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from backend.evaluation.changepoint import Verdict, finite_or_none, mean_of_units, onset
from backend.evaluation.rates import bootstrap_mean, resamples
from backend.experiments.courses import Change, Course

_DRAWS = 2000
_DRAWN = math.sqrt(2)  # a draw scatters around the measured mean as that does around the true one


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """A place on the axis, or that there is none."""

    at: float | None
    """None: not within what was measured."""

    low: float | None
    high: float | None
    """95 %; None: beyond what was measured."""

    draws: np.ndarray = field(repr=False, compare=False)
    """(n_draws,), infinite where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relapse:
    """Wrong rows after re-alignment against the same rows from the base, each counted from its own start."""

    again: When | None
    """From how many rows on it stays at least half-way from its start to where the first time ended; None where it starts at over half of what the first time
    came to, and has that way behind it."""

    first: When
    speed: Verdict | None
    """Again against the first time."""

    end: Change
    """The last point less the first: does it come back?"""


def starts_apart(one: Course) -> bool:
    """Whether the first point lies outside of the base's interval; where it does not, there is nothing to come back from."""
    return _is_apart(one, 0)


def ends_apart(one: Course) -> bool:
    """The same of the last point: where it lies inside, nothing has risen."""
    return _is_apart(one, -1)


def halved(one: Course) -> When:
    """From how many rows on the measure is at most half of what it starts from."""
    curves, _ = _drawn(one)
    return _when(_crossing(one.at, _part(curves, curves[:, 0])))


def halfway(one: Course) -> When:
    """From how many rows on the measure is at least half-way from its start to the base."""
    away = _away(one)
    return _when(_crossing(one.at, _part(away, away[:, 0])))


def risen(one: Course) -> When:
    """From where on the measure is at least half-way from the base to its last point; unlike ``leaves`` not the sooner the more precisely it is measured."""
    away = _away(one)
    return _when(_crossing(one.at, 1 - _part(away, away[:, -1])))


def back(one: Course) -> When:
    """The first measured point from which on all lie within the base's interval."""
    return _when(_first_of_tail(one.at, _sides(one) == 0))


def leaves(one: Course) -> When:
    """The first measured point from which on all lie outside of the base's interval, on one side."""
    sides = _sides(one)
    return _when(_first_of_tail(one.at, (sides == sides[:, -1:]) & (sides != 0)))


def relapse(again: Course, first: Course) -> Relapse:
    """Does it come back when it is trained badly again, and faster than the first time? Both of the same measure and units."""
    repeated, bases = _drawn(again)
    once, _ = _drawn(first)

    def reached(at: np.ndarray, curves: np.ndarray) -> When:
        return _when(_crossing(at, 1 - _part(curves - curves[:, :1], once[:, -1] - curves[:, 0])))

    before = reached(first.at, once)
    was_back = bool(_part(repeated[:1, :1] - bases[0], once[:1, -1] - bases[0])[0, 0] < 0.5)
    now = reached(again.at, repeated) if was_back else None
    at_end = _finite(again.values[:, -1] - again.values[:, 0])
    value, low, high = bootstrap_mean(list(at_end)) if len(at_end) else (math.nan, math.nan, math.nan)
    return Relapse(
        again=now, first=before, speed=against(now, before) if now else None, end=Change(value=value, low=low, high=high, n=(len(at_end), len(at_end)))
    )


def against(first: When, second: When, *, n_compared: int = 1) -> Verdict:
    """Whether the first is earlier than the second, by a 95 % interval of the difference.

    Args:
        n_compared: Comparisons made beside this one and with it; the interval is widened for them (Bonferroni).
    """
    with np.errstate(invalid="ignore"):
        later = np.sort(np.nan_to_num(second.draws - first.draws, nan=0.0, posinf=math.inf, neginf=-math.inf))
    cut = int(0.025 / n_compared * len(later))
    return "earlier" if later[cut] > 0 else "later" if later[-1 - cut] < 0 else "not told apart"


def _is_apart(one: Course, point: int) -> bool:
    return abs(_sides(one)[0, point]) == 1


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _drawn(one: Course) -> tuple[np.ndarray, np.ndarray]:
    """(1 + n_draws, n_points) mean curves and (1 + n_draws,) means of the base, the measured ones first; courses of the same units get the same draws."""
    drawn = mean_of_units(np.column_stack([one.values, one.base]), _weights(one.units))
    return drawn[:, :-1], drawn[:, -1]


@lru_cache(maxsize=4)
def _weights(units: tuple[str, ...]) -> np.ndarray:
    """(1 + n_draws, n_units) how often each draw takes each unit, each once first."""
    n = len(units)
    seed = zlib.crc32("\n".join(units).encode())
    return np.vstack([np.ones(n), resamples(n, _DRAWS, seed)])


def _away(one: Course) -> np.ndarray:
    """(1 + n_draws, n_points) mean curves less the base's, the measured one first."""
    curves, bases = _drawn(one)
    return curves - bases[:, None]


@lru_cache(maxsize=16)  # a course is asked for it three times over
def _sides(one: Course) -> np.ndarray:
    """(1 + n_draws, n_points) 0 within the base's interval, else 1 above or -1 below it, NaN where nothing was measured; the measured curve first."""
    margins = np.array([math.inf if m is None else m for m in onset(one.at, one.values, one.base, n_draws=2).margins])
    away = _away(one)
    limits = np.vstack([margins, np.tile(_DRAWN * margins, (_DRAWS, 1))])
    return np.where(np.isnan(away), np.nan, np.where(np.abs(away) > limits + 1e-12, np.sign(away), 0.0))


def _part(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Each row of ``values`` by its own ``whole``; NaN where that is 0."""
    return np.divide(values, whole[:, None], out=np.full(values.shape, np.nan), where=whole[:, None] != 0)


def _crossing(at: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Where each row of ``left`` comes down to a half for good; infinite where it does not."""
    last = _last(~(left <= 0.5))
    found = np.append(at, math.inf)[last + 1]
    rows = np.flatnonzero((last >= 0) & (last < len(at) - 1) & np.isfinite(left[np.arange(len(left)), last]))
    last = last[rows]
    above, below = left[rows, last], left[rows, last + 1]
    found[rows] = at[last] + (at[last + 1] - at[last]) * (above - 0.5) / (above - below)
    return found


def _first_of_tail(at: np.ndarray, is_so: np.ndarray) -> np.ndarray:
    """From where on all of a row are so; infinite where the last is not."""
    return np.append(at, math.inf)[_last(~is_so) + 1]


def _last(is_so: np.ndarray) -> np.ndarray:
    """The last place of each row that is so; -1 where none is."""
    return np.where(is_so.any(axis=1), is_so.shape[1] - 1 - is_so[:, ::-1].argmax(axis=1), -1)


def _when(found: np.ndarray) -> When:
    """From the measured place and the draws'."""
    draws = found[1:]
    ranked = np.sort(draws)
    cut = int(0.025 * len(draws))
    return When(at=finite_or_none(found[0]), low=finite_or_none(ranked[cut]), high=finite_or_none(ranked[-1 - cut]), draws=draws)
