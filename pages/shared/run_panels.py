"""A training run's table as the pictures take it: panels that share the step axis, what the cursor says, when each signal moves."""

import pandas as pd

from backend.charts.dynamics import LINES, Panel
from backend.experiments import transitions
from backend.experiments.courses import RATES
from backend.experiments.records import BASE_RUN
from backend.experiments.tables import Point, Result
from backend.experiments.transitions import BEHAVIOUR, SCALED, Transition
from pages.shared import study_view

_NAMES = {
    "log_odds": "Forced choice", "cosine_end": "Direction to its end", "cosine_previous": "Direction step to step", "loss": "Loss", "grad_norm": "Gradient norm",
}  # fmt: skip
Scaled = tuple[str, float]
"""The run of the same checkpoints with the adapter multiplied, and by how much; an empty name without one."""


def name_of(measure: str, scaled: Scaled = ("", 1.0)) -> str:
    """A signal in words, without a unit."""
    return f"Misaligned, adapter × {scaled[1]:g}" if measure == SCALED else _NAMES.get(measure) or study_view.short_name(measure)


def steps_of(result: Result, run: str) -> list[int]:
    """Measured steps, rising."""
    return sorted({p.step for p in result.points if p.run == run})


def measures_of(result: Result, run: str, kind: str) -> list[str]:
    """Those of a kind, such as ``latent``, in the order of the table."""
    return list(dict.fromkeys(p.measure for p in result.points if p.run == run and p.measure.startswith(f"{kind}/")))


def panels_of(result: Result, run: str, scaled: Scaled, latents: list[str]) -> list[Panel]:
    """Behaviour, then what is read inside, then the weights, then the log; a panel without values is left out."""
    both = {"as it is": run} | ({f"adapter × {scaled[1]:g}": scaled[0]} if scaled[0] else {})

    def rates(title: str, measure: str, height: int) -> Panel | None:
        return _panel(title, {line: result.of(of, measure) for line, of in both.items()}, height, base=result.of(BASE_RUN, measure))

    def signals(title: str, measures: list[str], height: int = 110) -> Panel | None:
        names = [name_of(m).removeprefix("Projection on ").removeprefix("Direction ") for m in measures]
        courses = {name: result.of(run, m) for name, m in zip(names, measures, strict=True)}
        return _panel(title, courses, height, base=result.of(BASE_RUN, measures[0]) if len(measures) == 1 else [])

    found = [
        rates("Misaligned, %", BEHAVIOUR, 130), rates("Incoherent, %", "incoherent", 70), signals("Forced choice", ["log_odds"], 92), signals("Latents", latents),
        signals("Projection", measures_of(result, run, "projection")[: len(LINES)]), signals("Direction", list(transitions.DIRECTION), 92),
    ]  # fmt: skip
    if (log := transitions.training_log(result, run)) is not None:
        for title, name in (("Loss", "loss"), ("Gradient", "grad_norm")):
            means = pd.DataFrame(log.means(name, steps_of(result, run)), columns=["step", "value"]).assign(line=title)
            if len(means):
                found.append(Panel(title, means, (title,), faint=_thinned(log, name)))
    return [p for p in found if p is not None]


def _thinned(log: transitions.Log, name: str) -> pd.DataFrame:
    """At most some 500 points of a column."""
    return pd.DataFrame({"step": log.steps, "value": getattr(log, name)}).iloc[:: max(1, len(log.steps) // 500)]


def _panel(title: str, courses: dict[str, list[Point]], height: int, *, base: list[Point]) -> Panel | None:
    told = {line: course for line, course in courses.items() if course}
    if not told:
        return None
    rows = [
        {"line": line, "step": p.step} | {name: _scaled(getattr(p, name), p.measure) for name in ("value", "low", "high")} for line, course in told.items() for p in course
    ]  # fmt: skip
    frame = pd.DataFrame(rows).astype({"low": float, "high": float})
    return Panel(title, frame, tuple(told), base=_scaled(base[0].value, base[0].measure) if base else None, height=height)


def _scaled(value: float | None, measure: str) -> float | None:
    return None if value is None else 100 * value if measure in RATES else value


def readout(result: Result, run: str, scaled: Scaled, latents: list[str]) -> pd.DataFrame:
    """What the cursor says at each measured step: a column a signal."""
    shown = [BEHAVIOUR, "incoherent", "log_odds", *latents, *measures_of(result, run, "projection"), *transitions.DIRECTION]
    courses = {name_of(m): result.of(run, m) for m in shown}
    if scaled[0]:
        courses[name_of(SCALED, scaled)] = result.of(scaled[0], BEHAVIOUR)
    found = {name: {p.step: said(p) for p in course} for name, course in courses.items() if course}
    return pd.DataFrame([{"step": step} | {name: course.get(step, "none") for name, course in found.items()} for step in steps_of(result, run)])


def said(p: Point) -> str:
    """A value with its interval."""
    return study_view.span(p.value, p.low, p.high, p.measure)


def move_rows(found: dict[str, Transition], scaled: Scaled, last: float) -> pd.DataFrame:
    """When each signal moves, for the picture and its table."""
    rows = []
    for measure, one in found.items():
        change, onset, name = one.change, one.onset, name_of(measure, scaled)
        interval = one.interval if one.moves else None
        verdict = "behaviour" if measure == BEHAVIOUR else one.verdict or ("no change point" if change and not one.moves else "not told")
        rows.append(
            {
                "name": name, "verdict": verdict, "label": name if measure == BEHAVIOUR else f"{name}: {verdict}", "zero": 0.0, "last": last,
                "begin": change and change.after, "end": change and change.before, "middle": change and change.step, "low": interval and interval.low,
                "high": interval and interval.high, "onset": onset and onset.step, "is_sharp": change is not None and change.is_sharp,
                "said": transitions.describe(one), "onset_said": _onset(one), "lead": transitions.describe_lead(one), "n": one.n,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).astype(dict.fromkeys(("begin", "end", "middle", "low", "high", "onset"), float))


def _onset(one: Transition) -> str:
    if one.onset is None:
        return "none: one number a step"
    return "never leaves the base's interval" if one.onset.step is None else f"step {one.onset.step:g}"
