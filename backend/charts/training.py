"""Training studies in pictures: panels over one axis, linked by a cursor, with single seeds as thin lines; a map of runs by measures."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES, row_names
from backend.charts.stacked import HAS_SPAN, Spec, layer, number, span, stacked, under, word

POINT = "training_point"
"""Name of the selection; it gives ``place``."""

LOOKS = (
    ("#16836b", "square", "■"), ("#7b5fc0", "diamond", "◆"), (ROLES["organism"].colour, "triangle-up", "▲"), ("#b0569b", "triangle-down", "▼"),
)  # fmt: skip
"""Colour, shape and symbol of the series of one picture, in their order."""

_CURSOR = "training_cursor"
_MEAN, _SINGLE = "datum.run === ''", "datum.run !== ''"
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


def panels(points: pd.DataFrame, base: pd.DataFrame, shown: Sequence[Panel], axis: Axis, *, series: Sequence[str]) -> Spec:
    """Measures under each other, a colour and a shape a series; a click on a point selects its ``place``, the pointer moves one cursor through all panels.

    Args:
        points: Columns ``measure, series, run, at, value, low, high, label, n_label, place``; of a mean over seeds ``run`` is empty, and of a single run
            that stands for itself too.
        base: Columns ``measure, value, low, high``: drawn as a line with a band behind the panel.
        series: Names in the order of their looks; four at most.
    """
    drawn = [_panel(points[points["measure"] == p.measure], base[base["measure"] == p.measure], p, axis, series, is_last=p is shown[-1]) for p in shown]
    cursor = {"name": _CURSOR, "select": {"type": "point", "fields": ["at"], "nearest": True, "on": "pointermove", "clear": "pointerout"}}
    picked = {"name": POINT, "select": {"type": "point", "fields": ["place"], "on": "click"}}
    return stacked(drawn, [cursor, picked])


def _panel(points: pd.DataFrame, base: pd.DataFrame, panel: Panel, axis: Axis, series: Sequence[str], *, is_last: bool) -> Spec:
    ends = [float(axis.ticks[0]), float(max(axis.ticks[-1], points["at"].max() if len(points) else 0))]
    scale = {"type": "sqrt" if axis.is_root else "linear", "domain": ends, "nice": False, "padding": 10}
    x = number(
        "at", scale=scale, axis={"title": axis.title if is_last else None, "values": list(axis.ticks), "labels": is_last, "ticks": is_last, "grid": False}
    )
    y = number("value", scale={"zero": panel.starts_at_zero}, axis={"title": None, "tickCount": 4, "minExtent": AXIS_WIDTH, "maxExtent": AXIS_WIDTH})
    looks = LOOKS[: len(series)]
    colour = word("series", scale={"domain": list(series), "range": [look[0] for look in looks]}, legend=None)
    shape = word("series", scale={"domain": list(series), "range": [look[1] for look in looks]}, legend=None)
    tooltip = [
        word("series", title="Training"), word("run", title="Run"), number("at", title=axis.title), word("label", title=panel.title), word("n_label", title="n"),
    ]  # fmt: skip
    place = {"x": x, "y": y}
    line, mark = place | {"color": colour}, place | {"color": colour, "shape": shape, "tooltip": tooltip}
    blue = ROLES["base"].colour
    layers = [
        layer("rect", span(), HAS_SPAN, table=base, opacity=0.13, color=blue, aria=False),
        layer("rule", {"y": number("value")}, table=base, strokeDash=[5, 4], color=blue, strokeWidth=1.4, aria=False),
    ] if len(base) else []  # fmt: skip
    layers += [
        layer("area", span() | {"x": x, "color": colour}, _MEAN, HAS_SPAN, opacity=0.16, line=False, aria=False),
        layer("line", line | {"detail": word("run")}, _SINGLE, strokeWidth=1, opacity=0.75, aria=False),
        layer("line", line, _MEAN, strokeWidth=2.4, aria=False),
        layer("point", mark, _SINGLE, filled=True, size=30, opacity=0.9, aria=False),
        layer("point", mark, _MEAN, filled=True, size=80, opacity=1, aria=False),
        layer("rule", {"x": x}, under(_CURSOR), color=_GREY, aria=False),
        layer("text", place | {"text": word("label")}, _MEAN, under(_CURSOR), align="left", dx=7, dy=-9, fontSize=12, aria=False),
        layer("point", place | {"tooltip": tooltip}, filled=True, size=260, opacity=0),  # a point is small for a finger; its name is read out once
    ]  # fmt: skip
    title = {"text": panel.title, "anchor": "start", "fontSize": 13, "fontWeight": "normal", "offset": 6}
    return {"data": points, "layer": layers, "height": panel.height, "title": title}


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
