"""What the pages of training studies share: finding a result, linked panels with their table, numbers in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import streamlit as st

from backend.charts.training import AXIS_WIDTH, LOOKS, POINT, Axis, Panel, panels
from backend.errors import BackendError, ResultMissingError
from backend.experiments import courses, readouts, tables
from backend.experiments.courses import RATES, Place
from backend.experiments.records import BASE_RUN, Run, Study, find_study
from backend.saes.records import load_saes
from backend.saes.tables import Tables
from pages.shared import keep, look
from pages.shared.state import asked_for, choose, keep_list

_NAMES = {
    "misaligned": "Misaligned, %", "incoherent": "Incoherent, %", "aligned": "Alignment score", "log_odds": "Log-odds, nats a token", "distance": "Weights' distance",
    "cosine_end": "Cosine with the end", "cosine_previous": "Cosine with the step before",
}  # fmt: skip
_MOST_MEASURES = 8
_HIDDEN = ("pc1", "pc2")  # a path, no curve
_WHOLE = 16  # rows of a table that is shown without scrolling


@dataclass(frozen=True, slots=True)
class Found:
    """A study with its result."""

    study: Study
    result: tables.Result

    @property
    def stamp(self) -> tuple[str, int]:
        """Changes with the result, for what is cached."""
        return str(self.result.folder), (self.result.folder / tables.TABLE).stat().st_mtime_ns

    @property
    def judge(self) -> str:
        return str(self.result.manifest.get("judge", {}).get("title", "an unknown judge"))

    @property
    def n_prompts(self) -> int:
        return int(self.result.manifest.get("prompt_set", {}).get("n", 0))


@dataclass(frozen=True, slots=True)
class Series:
    """Runs drawn in one colour."""

    title: str
    places: Mapping[float, Sequence[Place]]
    """Of the mean: places on the axis to runs and steps, each model once."""

    lines: Mapping[str, Mapping[float, Place]] = field(default_factory=dict)
    """Single seeds by name."""


def find(name: str) -> Found | None:
    """A study's result; without one, what makes it, and None."""
    study = find_study(name)
    try:
        found = Found(study, tables.load(study))
    except ResultMissingError as missing:
        with st.container(border=True):
            begun = tables.state(study) == "begun"
            st.markdown(f"#### {look.plain(study.question)}")
            st.markdown(
                f"{look.plain(str(missing))} {'It was begun and goes on where it was' if begun else 'It trains and measures on this machine, and resumes after a stop'}:"
            )
            st.code(missing.command, language=None, wrap_lines=True)
        return None
    if tables.state(study) == "older":
        st.warning(f"The study's record has changed since this result was made. To make it anew: python -m backend study run {study.name}")
    if absent := found.result.manifest.get("left_out"):
        st.info(f"Left out where this was measured: {look.plain(', '.join(absent))}, whose checkpoints were not there.")
    return found


def show(name: str, body: Callable[[Found], None]) -> None:
    """A study's result as ``body`` shows it; a fault is told in a sentence."""
    found = find(name)
    if found is None:
        return
    try:
        body(found)
    except BackendError as fault:
        st.error(look.plain(str(fault)))


def scored(found: Found) -> str:
    """How many answers a rate of this result stands on, such as "80 to 96 of 96 answers scored"."""
    n = sorted({p.n for p in found.result.points if p.measure == "incoherent"}) or [0]
    return f"{n[0]}{f' to {n[-1]}' if len(n) > 1 else ''} of {found.n_prompts} answers scored"


def along_rows(found: Found, runs: Sequence[Run], title: str) -> Series:
    """A series over rows seen, of runs that differ in their seed."""
    lines = {f"seed {run.seed}": {float(p.rows): (p.run, p.step) for p in found.result.points if p.run == run.label} for run in runs}
    return Series(title, courses.along(found.result, runs), {name: line for name, line in lines.items() if line} if len(runs) > 1 else {})


def name_of(measure: str) -> str:
    """A measure in words, such as "Latent 4133"."""
    kind, _, rest = measure.partition("/")
    return {"latent": f"Latent {rest}", "projection": f"Projection on {rest}"}.get(kind, _NAMES.get(measure, measure.replace("_", " ")))


def short_name(measure: str) -> str:
    """The same without its unit."""
    return name_of(measure).split(",")[0]


def labels(found: Found) -> dict[str, str]:
    """What the followed latents are called; nothing where their autoencoder is not known."""
    record = load_saes()[0].get(str(found.result.manifest.get("sae")))
    told = Tables.of(record).labels(found.study.latents) if record else {}
    return {f"latent/{latent}": label.text for latent, label in told.items()}


def number(value: float, measure: str, *, signed: bool = False) -> str:
    """A value with as many digits as it deserves; rates in per cent."""
    if measure in RATES:
        return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"
    return f"{value:{'+' if signed else ''}.{0 if measure == 'aligned' and not signed else 2}f}"


def span(value: float, low: float | None, high: float | None, measure: str) -> str:
    """A value with its interval, such as "12.5 % (7.3 to 20.7)"."""
    if low is None or high is None:
        return number(value, measure)
    return f"{number(value, measure)} ({' to '.join(number(v, measure).removesuffix(' %') for v in (low, high))})"


def when(found: readouts.When, *, limit: float, per: Callable[[float], str] = lambda at: f"{at:.0f}") -> str:
    """A place on the axis with its interval, such as "34 (20 to 60)"."""
    return (per(found.at) if found.at is not None else f"not within {per(limit)}") + bounds(found, limit=limit, per=per)


def bounds(found: readouts.When, *, limit: float, per: Callable[[float], str] = lambda at: f"{at:.0f}") -> str:
    """Its interval, such as " (20 to 60)"; empty where all of it is beyond what was measured."""
    low, high = (per(v) if v is not None else f"beyond {per(limit)}" for v in (found.low, found.high))
    return "" if low == high == f"beyond {per(limit)}" else f" ({low} to {high})"


def change(found: courses.Change, measure: str) -> str:
    """A difference with its interval."""
    unit = " points" if measure in RATES else ""
    scale = 100 if measure in RATES else 1
    digits = 1 if measure in RATES else 2
    value, low, high = (f"{scale * v:+.{digits}f}" for v in (found.value, found.low, found.high))
    return f"{value}{unit} ({low} to {high})"


def both(found: courses.Change) -> str:
    """The n of a difference: "52", or of two rates "91 and 96"."""
    return " and ".join(map(str, dict.fromkeys(found.n)))


def pick_measures(found: Found, first: Sequence[str], *, key: str) -> list[str]:
    """Which panels are drawn; in the link unless they are the first ones."""
    there = [m for m in courses.measures(found.result, with_units=False) if m not in _HIDDEN]
    default = [m for m in first if m in there] or there[:3]
    asked = asked_for(key, there, most=_MOST_MEASURES, what="the measure")
    picked = st.multiselect("Measures", there, default=asked or default, format_func=name_of, key=f"pick_{key}_{default}", max_selections=_MOST_MEASURES)
    keep_list(key, [] if picked == default else picked)
    if missing := [m for m in first if m not in there]:
        st.caption(f"Not measured here: {look.plain(', '.join(map(short_name, missing)))}. To measure it: python -m backend study run {found.study.name}")
    return picked or default


def draw(found: Found, series: Sequence[Series], measures: Sequence[str], axis: Axis, *, key: str, at_key: str) -> None:
    """Panels under each other and their table; a click chooses the point for the answers below (``at_key``)."""
    try:
        points = _points(found, found.stamp, [(s.title, dict(s.places), {k: dict(v) for k, v in s.lines.items()}) for s in series], tuple(measures))
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    base = pd.DataFrame(
        [{"measure": p.measure, "value": _scaled(p.value, p.measure), "low": _scaled(p.low, m) if m in RATES else None, "high": _scaled(p.high, m) if m in RATES else None}
         for m in measures for p in found.result.of(BASE_RUN, m)], columns=["measure", "value", "low", "high"],
    )  # fmt: skip
    marks = [(s.title, colour, symbol) for s, (colour, _, symbol) in zip(series, LOOKS, strict=False)]
    legend = look.legend([*marks, ("base", look.ROLES["base"].colour, "╌")])
    shown = [Panel(m, name_of(m), 190 if n == 0 else 120, m in RATES) for n, m in enumerate(measures)]
    keep.source(found.result.folder)
    event = keep.chart(
        keep.drawn(panels, points, base, shown, axis, series=[s.title for s in series]), where=room(key), key=f"{key}_{'-'.join(measures)}", on_select="rerun", selection_mode=POINT, table=points,
        title=f"{found.study.title}: {', '.join(map(short_name, measures))} by {axis.title.lower()}", text=f"{legend}; {found.n_prompts} prompts; {found.judge}. Thick: mean of the seeds, thin: a seed; bands: 95 %.",
        alt=f"{', '.join(map(name_of, measures))} by {axis.title.lower()}, for {', '.join(s.title for s in series)}. The table below has the numbers.",
    )  # fmt: skip
    picked = next((p.get("place") for p in event.get("selection", {}).get(POINT, [])), None) if event else None
    if picked and picked != st.session_state.get(f"picked_{key}"):
        choose(at_key, picked)
    st.session_state[f"picked_{key}"] = picked
    with st.expander("These points as a table"):
        table = points.rename(
            columns={"series": "Training", "run": "Run", "at": axis.title, "value": "Value", "low": "95 % from", "high": "to", "n_label": "n"}
        )
        table["Measure"] = [name_of(m) for m in table["measure"]]
        show_table(table[["Measure", "Training", "Run", axis.title, "Value", "95 % from", "to", "n"]], f"{found.study.name}.csv", key=f"table_{key}")
        st.caption(
            "Empty run: the mean over seeds. Intervals: Wilson of rates; else of the difference to the base on the same prompts or pairs, for a single seed of its own mean. Empty interval: no estimate, but a property of the weights."
        )


@st.cache_data(max_entries=50, show_spinner="Counting…")
def _points(_found: Found, stamp: tuple[str, int], series: list[Any], measures: tuple[str, ...]) -> pd.DataFrame:
    """Rows for the picture: means, and single seeds where there are several."""
    table = {(p.run, p.step, p.measure): p for p in _found.result.points}
    rows = []
    for title, places, lines in series:
        for measure in measures:
            means = courses.means(_found.result, places, measure)
            for m in means:
                rows.append(_row(measure, title, "", m.at, m.value, m.low, m.high, m.n, places[m.at][0]))
            if not means:
                for at, own in places.items():
                    if told := [p for place in own if (p := table.get((*place, measure)))]:
                        rows.append(_row(measure, title, "", at, sum(p.value for p in told) / len(told), None, None, len(told), own[0]))
            for name, line in lines.items():
                for at, place in line.items():
                    if p := table.get((*place, measure)):
                        rows.append(_row(measure, title, name, at, p.value, p.low, p.high, p.n, place))
    return pd.DataFrame(rows, columns=["measure", "series", "run", "at", "value", "low", "high", "label", "n_label", "place"])


def _row(measure: str, title: str, run: str, at: float, value: float, low: float | None, high: float | None, n: int, place: Place) -> dict[str, Any]:
    return {
        "measure": measure, "series": title, "run": run, "at": at, "value": _scaled(value, measure), "low": _scaled(low, measure), "high": _scaled(high, measure), "label": span(value, low, high, measure),
        "n_label": f"{n:,}", "place": f"{place[0]}@{place[1]}",
    }  # fmt: skip


def room(key: str) -> Any:
    """A container in which stacked panels with their axis fit: Streamlit gives panels alone the whole width."""
    st.html(f"<style>.st-key-panels_{key} {{ padding-right: {AXIS_WIDTH + 12}px }}</style>")
    return st.container(key=f"panels_{key}")


def show_table(table: pd.DataFrame, file: str, *, key: str) -> None:
    """A table with its CSV."""
    numbers = {c: st.column_config.NumberColumn(format="%.3f") for c in table.columns if table[c].dtype == float}
    rows = {"height": 35 * (len(table) + 1) + 3} if len(table) <= _WHOLE else {}
    st.dataframe(table, hide_index=True, **rows, column_config=numbers, key=key, alt=f"{', '.join(map(str, table.columns))}: {len(table)} rows")
    look.csv_button(table, file, key=f"{key}_csv")


def _scaled(value: float | None, measure: str) -> float | None:
    return None if value is None else 100 * value if measure in RATES else value
