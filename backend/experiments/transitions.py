"""When each signal of a training run turns, and whether it turns before the behaviour does.

*Signals with a value for each prompt or pair* (misalignment, forced choice, latents, projections) have a change point with an interval, an onset against the base,
and a lead on the misalignment rate. *One number a step* (the direction that the adapter writes, loss, gradient norm) has a change point alone: it is called
earlier only where all of its change lies before the behaviour's interval, later only where all of it lies behind. See ``evaluation.changepoint``.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from backend.evaluation.changepoint import ChangePoint, Interval, Lead, Onset, Verdict, change_point, interval, lead, mean_of_units, onset
from backend.experiments.records import BASE_RUN, Study
from backend.experiments.run import LOG
from backend.experiments.tables import VALUES, Result, values_of
from backend.paths import modified

BEHAVIOUR, SCALED = "misaligned", "misaligned, scaled up"
"""The unscaled rate, which all else is held against, and that of the same checkpoints with the adapter multiplied."""

DIRECTION = ("cosine_end", "cosine_previous")
_LOGGED = ("loss", "grad_norm")
_OF_UNITS = (BEHAVIOUR, "log_odds", "latent", "projection")

Series = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """When one signal moves over a run."""

    measure: str
    n: int
    """Prompts or pairs behind each step; 1 of one number a step."""

    change: ChangePoint | None
    """None with too few measured steps."""

    interval: Interval | None
    """Of the change point; None of one number a step."""

    onset: Onset | None
    lead: Lead | None
    """The signal's on the behaviour; None of the behaviour itself."""

    verdict: Verdict | None
    """The signal against the behaviour; None where one of them does not move, where too little is measured, and of the behaviour itself."""

    @property
    def moves(self) -> bool:
        """Changes beyond chance."""
        return self.change is not None and self.change.shape != "none"


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """A run's training log, (n_steps,) each."""

    steps: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray

    def means(self, name: str, at: Sequence[int]) -> Series:
        """Mean of a column over the steps up to each measured one, since the one before it; steps without any are left out."""
        values = getattr(self, name)
        edges = sorted({0, *at})
        told = [(step, values[(self.steps > before) & (self.steps <= step)]) for before, step in pairwise(edges)]
        return tuple((step, float(own.mean())) for step, own in told if len(own))


def runs(study: Study, result: Result) -> list[str]:
    """Runs of a result that stand for themselves: those whose adapter is not multiplied."""
    scales = {run.label: run.scale for run in study.runs}
    return [name for name in dict.fromkeys(p.run for p in result.points) if name != BASE_RUN and scales.get(name, 1.0) == 1]


def scaled_up(study: Study, result: Result, run: str) -> tuple[str, float]:
    """The run of the same checkpoints with the adapter multiplied, and by how much; an empty name where there is none."""
    organism = next((one.organism for one in study.runs if one.label == run), "")
    measured = {p.run for p in result.points}
    found = (one for one in study.runs if organism and one.organism == organism and one.scale != 1 and one.label in measured)
    return next(((one.label, one.scale) for one in found), ("", 1.0))


def training_log(result: Result, run: str) -> Log | None:
    """None where the run has no log, or it is damaged."""
    try:
        with (result.folder / LOG).open(encoding="utf-8", newline="") as handle:
            rows = [(int(r["step"]), float(r["loss"]), float(r["grad_norm"])) for r in csv.DictReader(handle) if r["run"] == run]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return Log(*np.array(rows).T) if rows else None


def of_run(result: Result, run: str, scaled: str = "") -> dict[str, Transition]:
    """The transitions of a run's signals by measure, the behaviour first; worked out once as long as the result stays.

    Args:
        scaled: The run of the same checkpoints with the adapter multiplied.

    Raises:
        ResultMissingError: The values behind the table are gone or damaged.
    """
    own = [p for p in result.points if p.run == run]
    steps = tuple(sorted({p.step for p in own}))
    measures = tuple(m for m in dict.fromkeys(p.measure for p in own) if m.split("/")[0] in _OF_UNITS)
    single = [(name, tuple((p.step, p.value) for p in result.of(run, name))) for name in DIRECTION]
    if (log := training_log(result, run)) is not None:
        single += [(name, log.means(name, steps)) for name in _LOGGED]
    return dict(
        _of_run(result.folder, modified(result.folder / VALUES), run, scaled, steps, measures, tuple((name, series) for name, series in single if series))
    )


@lru_cache(maxsize=20)
def _of_run(
    folder: Path, _modified: int, run: str, scaled: str, steps: tuple[int, ...], measures: tuple[str, ...], single: tuple[tuple[str, Series], ...]
) -> tuple[tuple[str, Transition], ...]:  # fmt: skip
    result = Result(folder, {}, ())
    wanted = (
        {m: (run, m) for m in measures if m == BEHAVIOUR}
        | ({SCALED: (scaled, BEHAVIOUR)} if scaled else {})
        | {m: (run, m) for m in measures if m != BEHAVIOUR}
    )
    units = {name: _Units.of(result, of, measure, steps) for name, (of, measure) in wanted.items()}
    behaviour = units.get(BEHAVIOUR)
    at = np.array(steps, dtype=float)
    turned = _of_units(BEHAVIOUR, behaviour, None, at) if behaviour is not None else None
    reference = behaviour if turned is not None and turned.moves else None
    found = [(name, _of_units(name, own, reference, at)) for name, own in units.items() if own is not None]
    return (*found, *((name, _of_series(name, series, turned)) for name, series in single))


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """A signal by prompt or pair."""

    ids: tuple[str, ...]
    values: np.ndarray
    """(n_units, n_steps), NaN where missing."""

    base: np.ndarray
    """(n_units,)"""

    @classmethod
    def of(cls, result: Result, run: str, measure: str, steps: Sequence[int]) -> "_Units | None":
        known = values_of(result, measure)
        at_base, courses = known.get((BASE_RUN, 0), {}), [known.get((run, step), {}) for step in steps]
        ids = tuple(sorted(set(at_base).union(*courses)))
        values = np.array([[told.get(unit, np.nan) for told in courses] for unit in ids])
        base = np.array([at_base.get(unit, np.nan) for unit in ids])
        return cls(ids, values, base) if np.isfinite(values).any() else None


def _of_units(measure: str, own: _Units, behaviour: _Units | None, steps: np.ndarray) -> Transition:
    change = change_point(steps, mean_of_units(own.values)[0])
    has_base = bool(np.isfinite(own.values - own.base[:, None]).any())
    gap = None
    if behaviour is not None and measure != BEHAVIOUR:
        is_paired = own.ids == behaviour.ids
        gap = lead(steps, own.values, behaviour.values, is_paired=is_paired, bases=(own.base, behaviour.base) if has_base else None)
    is_told = gap is not None and change is not None and change.step is not None
    return Transition(
        measure=measure, n=len(own.ids), change=change, interval=interval(steps, own.values) if change else None,
        onset=onset(steps, own.values, own.base) if has_base else None, lead=gap, verdict=gap.verdict if gap is not None and is_told else None,
    )  # fmt: skip


def _of_series(measure: str, series: Series, behaviour: Transition | None) -> Transition:
    steps, values = np.array(series, dtype=float).T
    change = change_point(steps, values)
    verdict: Verdict | None = None
    if change is not None and change.after is not None and change.before is not None and behaviour is not None and behaviour.interval is not None:
        low, high = behaviour.interval.low, behaviour.interval.high
        if low is not None and high is not None:
            verdict = "earlier" if change.before <= low else "later" if change.after >= high else "not told apart"
    return Transition(measure=measure, n=1, change=change, interval=None, onset=None, lead=None, verdict=verdict)


def by_verdict(found: Iterable[Transition]) -> dict[Verdict, list[str]]:
    """Measures by what is said of them against the behaviour; those that do not move stand nowhere."""
    told: dict[Verdict, list[str]] = {"earlier": [], "not told apart": [], "later": []}
    for one in found:
        if one.verdict is not None:
            told[one.verdict].append(one.measure)
    return told


def describe(one: Transition) -> str:
    """When a signal turns, in words."""
    change, within = one.change, ""
    if change is None:
        return "too few measured steps to say when it turns"
    if change.step is None:
        return f"no change beyond chance (p = {change.p:.2g})"
    if one.interval is not None:
        low, high = one.interval.low, one.interval.high
        within = f" (95 %: {low:g} to {high:g})" if low is not None and high is not None else " (no interval: under half of the draws have a change)"
    if change.shape == "step":
        return f"a sharp turn between steps {change.after:g} and {change.before:g}{within}"
    if change.shape == "ramp":
        return f"no sharp transition, but a gradual change from step {change.after:g} to {change.before:g}{within}"
    return f"a turn around step {change.step:g}{within}, sharp or not cannot be told"


def describe_lead(one: Transition) -> str:
    """A signal against the behaviour, in words; by how many training steps, above 0 the signal first."""
    if one.verdict is None:
        return ""
    if one.lead is None:
        return f"{one.verdict} (one number a step: its whole change against the behaviour's interval)"
    parts = [
        f"{name} {'' if gap.difference is None else f'{gap.difference:+g} '}({_open(gap.low)} to {_open(gap.high)})".replace("-", "\N{MINUS SIGN}")
        for name, gap in (("change point", one.lead.changes), ("onset", one.lead.onsets)) if gap is not None
    ]  # fmt: skip
    return f"{one.verdict}: {', '.join(parts)}"


def _open(step: float | None) -> str:
    """An end of an interval, which a signal that never moves leaves open."""
    return "open" if step is None else f"{step:+g}"
