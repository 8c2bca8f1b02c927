"""Training studies in pictures: panels over one axis, linked by a cursor, with single seeds as thin lines; a map of runs by measures."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES, row_names

POINT = "training_point"
"""Name of the selection; it gives ``place``."""

LOOKS = (
    ("#16836b", "square", "■"), ("#7b5fc0", "diamond", "◆"), (ROLES["organism"].colour, "triangle-up", "▲"), ("#b0569b", "triangle-down", "▼"),
)  # fmt: skip
"""Colour, shape and symbol of the series of one picture, in their order."""

QUIET = alt.Config(view=alt.ViewConfig(stroke=None), axis=alt.AxisConfig(gridOpacity=0.5))
"""Given when a picture is made: each ``configure_`` copies all of it."""

_CURSOR = "training_cursor"
AXIS_WIDTH = 44
"""Pixels left of each panel, so that panels stand under each other; Streamlit gives the width of its column to the panels without it."""

_GREY = "#888"


@dataclass(frozen=True, slots=True)
class Panel:
    """One measure."""

    measure: str
    title: str
    height: int = 150
    starts_at_zero: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What all panels share."""

    title: str
    ticks: Sequence[float]
    is_root: bool = True
    """A square-root scale, so that early points are told apart."""


def panels(points: pd.DataFrame, base: pd.DataFrame, shown: Sequence[Panel], axis: Axis, *, series: Sequence[str]) -> alt.VConcatChart:
    """Measures under each other, a colour and a shape a series; a click on a point selects its ``place``, the pointer moves one cursor through all panels.

    Args:
        points: Columns ``measure, series, run, at, value, low, high, label, n_label, place``; of a mean over seeds ``run`` is empty, and of a single run
            that stands for itself too.
        base: Columns ``measure, value, low, high``: drawn as a line with a band behind the panel.
        series: Names in the order of their looks; four at most.
    """
    cursor = alt.selection_point(name=_CURSOR, fields=["at"], nearest=True, on="pointermove", clear="pointerout", empty=False)
    picked = alt.selection_point(name=POINT, fields=["place"], on="click", empty=False)
    last = shown[-1].measure
    drawn = [
        _panel(points[points["measure"] == p.measure], base[base["measure"] == p.measure], p, axis, series, (cursor, picked), is_last=p.measure == last)
        for p in shown
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that panels share the cursor, which is what links them
        return alt.vconcat(*drawn, spacing=10, config=QUIET)


def _panel(
    points: pd.DataFrame, base: pd.DataFrame, panel: Panel, axis: Axis, series: Sequence[str], params: tuple[alt.Parameter, alt.Parameter], *, is_last: bool
) -> alt.LayerChart:
    cursor, picked = params
    ends = [float(axis.ticks[0]), float(max(axis.ticks[-1], points["at"].max() if len(points) else 0))]
    scale = alt.Scale(type="sqrt" if axis.is_root else "linear", domain=ends, nice=False, padding=10)
    x = alt.X("at:Q", scale=scale, axis=alt.Axis(title=axis.title if is_last else None, values=list(axis.ticks), labels=is_last, ticks=is_last, grid=False))
    y = alt.Y("value:Q", scale=alt.Scale(zero=panel.starts_at_zero), axis=alt.Axis(title=None, tickCount=4, minExtent=AXIS_WIDTH, maxExtent=AXIS_WIDTH))
    looks = LOOKS[: len(series)]
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(series), range=[look[0] for look in looks]), legend=None)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=list(series), range=[look[1] for look in looks]), legend=None)
    names = {"series:N": "Training", "run:N": "Run", "at:Q": axis.title, "label:N": panel.title, "n_label:N": "n"}
    tooltip = [alt.Tooltip(column, title=name) for column, name in names.items()]
    layers: list[alt.Chart] = []
    if len(base):
        behind = alt.Chart(base)
        blue = ROLES["base"].colour
        layers.append(behind.transform_filter("isValid(datum.low)").mark_rect(aria=False, opacity=0.13, color=blue).encode(y=alt.Y("low:Q"), y2="high:Q"))
        layers.append(behind.mark_rule(aria=False, strokeDash=[5, 4], color=blue, strokeWidth=1.4).encode(y=alt.Y("value:Q")))
    drawn = alt.Chart()  # of the panel's data, which is written once
    mean, single = drawn.transform_filter("datum.run === ''"), drawn.transform_filter("datum.run !== ''")
    layers += [
        mean.transform_filter("isValid(datum.low)").mark_area(aria=False, opacity=0.16, line=False).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        single.mark_line(aria=False, strokeWidth=1, opacity=0.75).encode(x=x, y=y, color=colour, detail="run:N"),
        mean.mark_line(aria=False, strokeWidth=2.4).encode(x=x, y=y, color=colour),
        single.mark_point(aria=False, filled=True, size=30, opacity=0.9).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        mean.mark_point(aria=False, filled=True, size=80, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        drawn.transform_filter(cursor).mark_rule(aria=False, color=_GREY).encode(x=x),
        mean.transform_filter(cursor).mark_text(aria=False, align="left", dx=7, dy=-9, fontSize=12).encode(x=x, y=y, text="label:N"),
        drawn.mark_point(filled=True, size=260, opacity=0)
        .encode(x=x, y=y, tooltip=tooltip)
        .add_params(cursor, picked),  # a point is small for a finger; its name is read out once
    ]
    title = alt.Title(panel.title, anchor="start", fontSize=13, fontWeight="normal", offset=6)
    return alt.LayerChart(data=points, layer=layers, height=panel.height, title=title)


def change_map(cells: pd.DataFrame, *, runs: Sequence[str], measures: Sequence[str], row_height: int = 26) -> alt.LayerChart:
    """Runs by measures: how far each moved from the base. Colour is the sign, strength the share of the measure's largest change; a clear change has a dot.

    Args:
        cells: Columns ``run, measure, share`` (-1 to 1), ``change, label, is_clear, n_label``.
    """
    down, up = ROLES["base"].colour, ROLES["organism"].colour
    wide = {"expr": "width > 620 ? 0.9 : 0"}  # numbers only where they fit; the table has them
    x = alt.X(
        "measure:N", sort=list(measures), title=None, axis=alt.Axis(orient="top", labelAngle=-90, labelLimit=150, labelOverlap=False, domain=False, ticks=False)
    )
    y = alt.Y("run:N", sort=list(runs), title=None, axis=row_names(190))
    told = alt.Chart(cells)
    tooltip = [alt.Tooltip(c, title=t) for c, t in {"run": "Run", "measure": "Measure", "label": "Change from the base", "n_label": "n"}.items()]
    fill = told.mark_rect(stroke=_GREY, strokeOpacity=0.25).encode(
        x=x, y=y, tooltip=tooltip, color=alt.condition("datum.share < 0", alt.value(down), alt.value(up)),
        opacity=alt.Opacity("size:Q", scale=alt.Scale(domain=[0, 1], range=[0.02, 0.55]), legend=None),
    ).transform_calculate(size="abs(datum.share)")  # fmt: skip
    numbers = told.mark_text(fontSize=11, opacity=wide).encode(x=x, y=y, text=alt.Text("short:N"))
    dots = told.transform_filter("datum.is_clear").mark_point(filled=True, size=14, yOffset=-9, color=_GREY, opacity=1).encode(x=x, y=y)
    return alt.layer(fill, numbers, dots).properties(height=alt.Step(row_height)).configure_view(stroke=None)
