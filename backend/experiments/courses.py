"""Measures of a study along an axis, unit by unit: seeds put together, means for a picture, differences. From its tables alone.

Intervals are 95 %: Wilson and Newcombe of rates, else percentile bootstrap over units (prompts, pairs), seeds averaged before. They cover neither training seeds,
which are drawn singly, nor the judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backend.evaluation import rates
from backend.evaluation.changepoint import mean_of_units
from backend.experiments.records import BASE_RUN, Run, Study
from backend.experiments.tables import RATES, Place, Result, values_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """One measure along an axis, with the base's, unit by unit."""

    measure: str
    at: np.ndarray
    """(n_points,) rising: rows seen in training, or share of wrong rows."""

    values: np.ndarray
    """(n_units, n_points), the mean over seeds; NaN where there is none."""

    base: np.ndarray
    """(n_units,)."""

    units: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One mean less another."""

    value: float
    low: float
    high: float
    n: tuple[int, int]
    """Of both: units, or scored answers where the measure is a rate."""

    @property
    def is_clear(self) -> bool:
        """The interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A point of a drawn curve: the mean over seeds."""

    at: float
    value: float
    low: float
    high: float
    n: int


def by_seed(study: Study) -> dict[str, tuple[Run, ...]]:
    """Runs that differ in their seed alone, by what their labels share."""
    found: dict[str, list[Run]] = {}
    for run in study.runs:
        found.setdefault(run.label.removesuffix(f"-{run.seed}"), []).append(run)
    return {name if len(runs) > 1 else runs[0].label: tuple(runs) for name, runs in found.items()}


def along(result: Result, runs: Sequence[Run]) -> dict[float, list[Place]]:
    """Rows seen to the places of all runs, each model once (seeds may start from the same); rows at which one of them has no point are
    left out."""
    own = [points for run in runs if (points := {float(p.rows): p for p in result.points if p.run == run.label})]
    found = {}
    for rows in sorted(set.intersection(*map(set, own))) if own else ():
        found[rows] = list({points[rows].variant: (points[rows].run, points[rows].step) for points in reversed(own)}.values())[::-1]
    return found


def end(result: Result, runs: Sequence[Run]) -> list[Place]:
    """The last point of each run that has any."""
    last = {run.label: max((p.step for p in result.points if p.run == run.label), default=None) for run in runs}
    return [(label, step) for label, step in last.items() if step is not None]


def measures(result: Result, *, with_units: bool = True) -> list[str]:
    """In the table's order; ``with_units``: those that have an interval."""
    return list(dict.fromkeys(p.measure for p in result.points if not with_units or p.low is not None))


def course(result: Result, places: Mapping[float, Sequence[Place]], measure: str) -> Course | None:
    """Points without a value, such as a rate where nothing is coherent, stay as NaN; None where the base has no value, or fewer than two points have any.

    Raises:
        ResultMissingError: The values are gone or damaged.
    """
    known = values_of(result, measure)
    base = known.get((BASE_RUN, 0), {})
    units = tuple(sorted(base))
    values = np.array([_mean_of([known.get(place, {}) for place in own], units) for _, own in sorted(places.items())]).T
    if not units or np.isfinite(values).any(axis=0).sum() < 2:
        return None
    return Course(measure=measure, at=np.array(sorted(places)), values=values, base=np.array([base[unit] for unit in units]), units=units)


def against_first(one: Course) -> Course:
    """The same with the first point in the base's place: what training itself does is left out."""
    return Course(measure=one.measure, at=one.at[1:], values=one.values[:, 1:], base=one.values[:, 0], units=one.units)


def means(result: Result, places: Mapping[float, Sequence[Place]], measure: str) -> list[Mean]:
    """Means over seeds. Intervals: of rates Wilson over all answers; else of the difference to the base on the same units, put around the mean."""
    known = values_of(result, measure)
    base = known.get((BASE_RUN, 0), {})
    measured = {at: seeds for at, own in sorted(places.items()) if (seeds := [known[place] for place in own if place in known])}
    if measure in RATES:
        answers = {at: [value for seed in seeds for value in seed.values()] for at, seeds in measured.items()}
        return [_rate(at, told) for at, told in answers.items()]
    by_units: dict[tuple[str, ...], dict[float, np.ndarray]] = {}  # points of the same units are drawn together
    for at, seeds in measured.items():
        units = tuple(unit for unit in sorted(base) if any(unit in values for values in seeds))
        by_units.setdefault(units, {})[at] = _mean_of(seeds, units)
    found = []
    for units, values in by_units.items():
        if len(units) < 2:
            continue
        at_base = _mean_of([base], units)
        intervals = rates.bootstrap_means([own - at_base for own in values.values()])
        for (at, own), (away, low, high) in zip(values.items(), intervals, strict=True):
            value = float(own.mean())
            found.append(Mean(at=at, value=value, low=value + low - away, high=value + high - away, n=len(units)))
    return sorted(found, key=lambda mean: mean.at)


def _rate(at: float, answers: Sequence[float]) -> Mean:
    low, high = rates.wilson(round(sum(answers)), len(answers))
    return Mean(at=at, value=float(np.mean(answers)), low=low, high=high, n=len(answers))


def difference(result: Result, first: Sequence[Place], second: Sequence[Place], measure: str) -> Change | None:
    """First less second; of rates unpaired, else paired by unit, seeds averaged before. None where either was not measured."""
    known = values_of(result, measure)
    one, other = ([known[place] for place in places if place in known] for places in (first, second))
    if not one or not other:
        return None
    if measure in RATES:
        counts = [(round(sum(sum(v.values()) for v in seeds)), sum(len(v) for v in seeds)) for seeds in (one, other)]
        found = rates.difference(*counts)
        return Change(value=found.value, low=found.low, high=found.high, n=(counts[0][1], counts[1][1]))
    units = tuple(sorted(set().union(*one) & set().union(*other)))
    if len(units) < 2:
        return None
    value, low, high = rates.bootstrap_mean(list(_mean_of(one, units) - _mean_of(other, units)))
    return Change(value=value, low=low, high=high, n=(len(units), len(units)))


def _mean_of(seeds: Sequence[Mapping[str, float]], units: Sequence[str]) -> np.ndarray:
    """(n_units,) over the seeds that have a value; NaN where none has."""
    told = np.array([[values.get(unit, np.nan) for unit in units] for values in seeds])
    return mean_of_units(told)[0]
