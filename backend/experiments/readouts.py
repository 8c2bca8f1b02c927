"""What a training study says, in numbers: how many rows halve a measure, when it is back, what leaves the base first.

*The base's interval* is that of a model like the base on the same prompts or pairs, for all points together (``changepoint.onset``): it compares unit by unit, so it
is narrower than the interval of the base's own mean. *Half-way* and *halved* count for good: where a curve goes back up, the last crossing is told, with straight
lines between measured points. Intervals are 95 %, percentile bootstrap over units, the same draw for all points.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from backend.evaluation.changepoint import Verdict, finite_or_none, mean_of_units, onset
from backend.evaluation.rates import bootstrap_mean
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
    return _when([_crossing(one.at, _share(curve, 0.0)) for curve in curves])


def halfway(one: Course) -> When:
    """From how many rows on the measure is at least half-way from its start to the base."""
    curves, bases = _drawn(one)
    return _when([_crossing(one.at, _share(curve, base)) for curve, base in zip(curves, bases, strict=True)])


def risen(one: Course) -> When:
    """From where on the measure is at least half-way from the base to its last point; unlike ``leaves`` not the sooner the more precisely it is measured."""
    curves, bases = _drawn(one)
    return _when([_crossing(one.at, 1 - _part(curve - base, curve[-1] - base)) for curve, base in zip(curves, bases, strict=True)])


def back(one: Course) -> When:
    """The first measured point from which on all lie within the base's interval."""
    return _when([_first_of_tail(one.at, sides == 0) for sides in _sides(one)])


def leaves(one: Course) -> When:
    """The first measured point from which on all lie outside of the base's interval, on one side."""
    return _when([_first_of_tail(one.at, (sides == sides[-1]) & (sides != 0)) for sides in _sides(one)])


def relapse(again: Course, first: Course) -> Relapse:
    """Does it come back when it is trained badly again, and faster than the first time? Both of the same measure and units."""
    repeated, bases = _drawn(again)
    once, _ = _drawn(first)

    def reached(at: np.ndarray, curves: np.ndarray) -> When:
        return _when([_crossing(at, 1 - _part(curve - curve[0], end - curve[0])) for curve, end in zip(curves, once[:, -1], strict=True)])

    before = reached(first.at, once)
    was_back = bool(_part(repeated[0, :1] - bases[0], once[0, -1] - bases[0])[0] < 0.5)
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
    n = len(one.units)
    seed = zlib.crc32("\n".join(one.units).encode())
    weights = np.vstack([np.ones(n), np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_DRAWS)])
    values = np.column_stack([one.values, one.base])
    drawn = mean_of_units(values, weights)
    return drawn[:, :-1], drawn[:, -1]


def _sides(one: Course) -> np.ndarray:
    """(1 + n_draws, n_points) 0 within the base's interval, else 1 above or -1 below it, NaN where nothing was measured; the measured curve first."""
    margins = np.array([math.inf if m is None else m for m in onset(one.at, one.values, one.base, n_draws=2).margins])
    curves, base = _drawn(one)
    away = curves - base[:, None]
    limits = np.vstack([margins, np.tile(_DRAWN * margins, (_DRAWS, 1))])
    return np.where(np.isnan(away), np.nan, np.where(np.abs(away) > limits + 1e-12, np.sign(away), 0.0))


def _part(values: np.ndarray, whole: float) -> np.ndarray:
    return values / whole if whole else np.full(len(values), np.nan)


def _share(curve: np.ndarray, floor: float) -> np.ndarray:
    """What is left of the first point's distance from ``floor``."""
    return _part(curve - floor, curve[0] - floor)


def _crossing(at: np.ndarray, left: np.ndarray) -> float:
    """Where ``left`` comes down to a half for good; infinite where it does not."""
    above = np.flatnonzero(~(left <= 0.5))
    if not len(above):
        return float(at[0])
    last = above[-1]
    if last == len(at) - 1:
        return math.inf
    if not np.isfinite(left[last]):
        return float(at[last + 1])
    return float(at[last] + (at[last + 1] - at[last]) * (left[last] - 0.5) / (left[last] - left[last + 1]))


def _first_of_tail(at: np.ndarray, is_so: np.ndarray) -> float:
    """From where on all are so; infinite where the last is not."""
    others = np.flatnonzero(~is_so)
    first = others[-1] + 1 if len(others) else 0
    return float(at[first]) if first < len(at) else math.inf


def _when(found: Sequence[float]) -> When:
    """From the measured place and the draws'."""
    draws = np.array(found[1:])
    ranked = np.sort(draws)
    cut = int(0.025 * len(draws))
    return When(at=finite_or_none(found[0]), low=finite_or_none(ranked[cut]), high=finite_or_none(ranked[-1 - cut]), draws=draws)
