"""Runs of a study beside each other at their end: rates as dots with intervals, a map of what changed inside, a table of both."""

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from backend.charts.rates import rate_rows
from backend.charts.training import change_map
from backend.experiments import courses
from backend.experiments.courses import RATES, Place
from backend.experiments.records import BASE_RUN
from pages.shared import keep, study_view
from pages.shared.study_view import Found

_BASE = [(BASE_RUN, 0)]


def bars(found: Found, runs: Mapping[str, Place], measure: str, *, key: str) -> None:
    """A measure of each run and of the base.

    Args:
        runs: Names to last points.
    """
    named = {"base": (BASE_RUN, 0), **runs}
    rows = []
    for name, place in named.items():
        told = next(iter(courses.means(found.result, {0.0: [place]}, measure)), None)
        role = "base" if place[0] == BASE_RUN else "organism"
        if told is None:
            rows.append({"name": name, "role": role, "value": None, "low": None, "high": None, "label": "no rate", "n_label": "0"})
            continue
        scale = 100 if measure in RATES else 1
        label = study_view.span(told.value, told.low, told.high, measure)
        values = {"value": scale * told.value, "low": scale * told.low, "high": scale * told.high}
        rows.append({"name": name, "role": role} | values | {"label": label, "n_label": str(told.n)})
    keep.source(found.result.folder)
    keep.chart(
        keep.drawn(rate_rows, pd.DataFrame(rows), unit=study_view.name_of(measure), title=f"{study_view.short_name(measure)} at the end of the training", subtitle=f"with 95 %; {study_view.scored(found)} a run"), key=key, title=f"{study_view.name_of(measure)} at the end of the training",
        alt=f"{study_view.name_of(measure)} of {', '.join(named)}, with intervals. The table below has the numbers.",
    )  # fmt: skip


def inside(found: Found, runs: Mapping[str, Place], *, key: str) -> None:
    """What each run changed against the base, measure by measure."""
    st.markdown("##### What changed inside")
    measures = [m for m in courses.measures(found.result) if m not in ("aligned", "incoherent")]
    cells = changes(found, runs, measures)
    if cells.empty:
        st.info(f"No run of this result was measured beside the base. To make it: python -m backend study run {found.study.name}")
        return
    st.caption(
        "Each run less the base on the same prompts, pairs and texts. Orange: more, blue: less; strength: share of the measure's largest change here, so columns cannot be "
        "compared with each other. Dot: the 95 % interval leaves out 0, one by one; with so many cells some do by chance."
    )
    names = [study_view.short_name(m) for m in measures]
    keep.chart(
        keep.drawn(change_map, cells, runs=list(runs), measures=names),
        key=key,
        title="What changed inside",
        text="Each run less the base on the same prompts, pairs and texts. Orange: more, blue: less; strength: share of the measure's largest change here. Dot: the 95 % interval leaves out 0.",
        alt=f"Change of {', '.join(names)} against the base for {', '.join(runs)}. The table below has the numbers.",
    )
    with st.expander("These changes as a table"):
        table = cells.rename(columns={"run": "Run", "measure": "Measure", "change": "Change", "low": "95 % from", "high": "to", "n_label": "n"})
        study_view.show_table(table[["Run", "Measure", "Change", "95 % from", "to", "n"]], f"{found.study.name}_changes.csv", key=f"{key}_table")


def changes(found: Found, runs: Mapping[str, Place], measures: Sequence[str]) -> pd.DataFrame:
    """A cell a run and measure."""
    rows = []
    for measure in measures:
        told = {name: one for name, place in runs.items() if (one := courses.difference(found.result, [place], _BASE, measure))}
        largest = max((abs(one.value) for one in told.values()), default=0.0) or 1.0
        scale = 100 if measure in RATES else 1
        for name, one in told.items():
            rows.append(
                {
                    "run": name, "measure": study_view.short_name(measure), "share": one.value / largest, "change": scale * one.value, "low": scale * one.low,
                    "high": scale * one.high, "label": study_view.change(one, measure), "short": f"{scale * one.value:+.{0 if measure in RATES else 2}f}",
                    "is_clear": one.is_clear, "n_label": study_view.both(one),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
