"""A training run in pictures: signals on one step axis under one cursor, when each of them moves, the path of the adapter's direction, rates of others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from backend.charts.roles import ROLES, row_names
from backend.charts.stacked import HAS_SPAN, Spec, layer, number, span, stacked, under, word

CLICK = "step_click"
"""Name of the selection; it gives ``step``."""

LINES = ((ROLES["organism"].colour, "triangle-up"), ("#7b5fc0", "square"), ("#16836b", "diamond"), (ROLES["base"].colour, "circle"))
"""Colour and shape of a panel's lines, in their order; their number is the most that a panel shows."""

_DASHES = ([1, 0], [7, 3], [2, 2], [9, 2, 2, 2])  # colour is never alone

VERDICTS = {
    "behaviour": ROLES["organism"].colour,
    "earlier": "#7b5fc0",
    "later": "#16836b",
    "not told apart": "#808790",
    "no change point": "#808790",
    "not told": "#808790",
}
"""Colour of what is said of a signal against the behaviour; the words stand beside it."""

_CURSOR = "cursor"
_AXIS = 46  # pixels of an axis' labels and title, so that panels stand under each other
_GREY = "#808790"


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Signals that share a scale."""

    title: str
    frame: pd.DataFrame
    """Columns ``line, step, value, low, high``; low and high may be missing."""

    lines: tuple[str, ...]
    faint: pd.DataFrame | None = None
    """Columns ``step, value``: what the line is a mean of."""

    base: float | None = None
    """The base's value, dashed."""

    height: int = 92


def panels(drawn: Sequence[Panel], readout: pd.DataFrame, *, chosen: int | None) -> Spec:
    """Panels under each other with one cursor: hovering any moves it in all of them, a click selects the nearest measured ``step``.

    Args:
        readout: Column ``step``, each measured one, and a column of text a signal, which the cursor shows.
        chosen: The step selected at first.
    """
    start = {} if chosen is None else {"value": [{"step": chosen}]}
    hover = {"name": _CURSOR, "select": {"type": "point", "fields": ["step"], "nearest": True, "on": "pointerover", "clear": "pointerout"}}
    click = {"name": CLICK, "select": {"type": "point", "fields": ["step"], "nearest": True, "on": "click"}, **start}
    fields = {f"said{n}": name for n, name in enumerate(c for c in readout.columns if c != "step")}  # a name with a quote or a dot is no field of Vega's
    tooltip = [number("step", title="Step"), *(word(field, title=name) for field, name in fields.items())]
    last = float(max(p.frame["step"].max() for p in drawn))
    steps = readout.rename(columns={name: field for field, name in fields.items()})
    found = [_panel(p, steps, tooltip, last=last, is_lowest=p is drawn[-1]) for p in drawn]
    return stacked(
        found, [hover, click], resolve={"scale": {"color": "independent", "shape": "independent", "strokeDash": "independent"}},
        autosize={"type": "fit-x", "contains": "padding"},  # Streamlit would let layered panels run out of their column
    )  # fmt: skip


def _panel(p: Panel, steps: pd.DataFrame, tooltip: list[Spec], *, last: float, is_lowest: bool) -> Spec:
    axis = {"title": "Training step" if is_lowest else None, "labels": is_lowest, "ticks": is_lowest, "grid": False, "tickCount": 8}
    x = number("step", scale={"domain": [0, last], "nice": False, "padding": 9}, axis=axis)
    y = number("value", title=p.title, scale={"zero": False}, axis={"tickCount": 4, "minExtent": _AXIS, "titlePadding": 6})
    looks, lines = LINES[: len(p.lines)], list(p.lines)
    n_columns = 2 if len(lines) > 3 else len(lines)
    legend = (
        {"orient": "top", "title": None, "offset": 2, "labelLimit": 190, "columns": n_columns, "symbolSize": 60, "symbolStrokeWidth": 0}
        if len(lines) > 1
        else None
    )
    colour = word("line", scale={"domain": lines, "range": [c for c, _ in looks]}, legend=legend)
    shape = word("line", scale={"domain": lines, "range": [s for _, s in looks]}, legend=legend)
    dash = word("line", scale={"domain": lines, "range": list(_DASHES[: len(lines)])}, legend=None)
    place = {"x": x, "y": y}
    layers = []
    if p.base is not None:
        layers.append(layer("rule", {"y": y}, table=pd.DataFrame({"value": [p.base]}), strokeDash=[4, 4], color=ROLES["base"].colour, opacity=0.9))
    if p.faint is not None:
        layers.append(layer("line", place, table=p.faint, strokeWidth=0.8, opacity=0.35, color=looks[0][0]))
    if "low" in p.frame and p.frame["low"].notna().any():
        layers.append(layer("rule", span() | {"x": x, "color": colour}, HAS_SPAN, strokeWidth=1.4, opacity=0.6))
    layers += [
        layer("line", place | {"color": colour, "strokeDash": dash}, strokeWidth=1.8, opacity=0.7),
        layer("point", place | {"color": colour, "shape": shape}, filled=True, size=42, opacity=1),
        layer("rule", {"x": x}, under(_CURSOR), table=steps, color=_GREY, strokeWidth=1, aria=False),
        layer("rule", {"x": x}, under(CLICK), table=steps, color=LINES[0][0], strokeWidth=2, strokeDash=[6, 3], aria=False),
        layer("rule", {"x": x, "tooltip": tooltip}, table=steps, strokeWidth=12, opacity=0),
    ]
    return {"data": p.frame, "layer": layers, "height": p.height}


def moves(rows: pd.DataFrame, *, last: float) -> alt.LayerChart:
    """When each signal moves: a bar from the begin to the end of its change, a thin line for the interval, a tick for the onset.

    Args:
        rows: Columns ``name, verdict, begin, end, middle, low, high, onset, zero, last`` (steps; missing where there is none), ``is_sharp, said, onset_said, lead, label``; the behaviour first.
        last: The last step.
    """
    x: dict[str, Any] = {"scale": alt.Scale(domain=[0, last], nice=False, padding=9)}
    axis = row_names(230, labelOverlap=False, grid=True, labelPadding=6)
    y = alt.Y("label:N", sort=list(rows["label"]), title=None, axis=axis)
    colour = alt.Color("verdict:N", scale=alt.Scale(domain=list(VERDICTS), range=list(VERDICTS.values())), legend=None)
    tooltip = [
        alt.Tooltip("name", title="Signal"),
        alt.Tooltip("said", title="Change"),
        alt.Tooltip("onset_said", title="Onset"),
        alt.Tooltip("lead", title="Against the behaviour"),
    ]
    layers = [alt.Chart(rows).mark_point(opacity=0).encode(y=y, x=alt.X("zero:Q", title="Training step", axis=alt.Axis(tickCount=6), **x))]

    def draw(there: pd.Series, mark: Callable[[alt.Chart], alt.Chart], **encoding: Any) -> None:
        if there.any():  # a group without marks would have no name for screen readers
            layers.append(mark(alt.Chart(rows[there])).encode(**encoding))

    def at(column: str) -> alt.X:
        return alt.X(f"{column}:Q", **x)

    shade: dict[str, Any] = {"opacity": 0.1, "color": VERDICTS["behaviour"]}
    draw((rows["verdict"] == "behaviour") & rows["low"].notna(), lambda c: c.mark_rect(**shade), x=at("low"), x2="high:Q")
    draw(rows["low"].notna(), lambda c: c.mark_rule(strokeWidth=1.6), x=at("low"), x2="high:Q", y=y, color=colour)
    draw(rows["begin"].notna(), lambda c: c.mark_bar(height=7, opacity=0.55), x=at("begin"), x2="end:Q", y=y, color=colour)
    point: dict[str, Any] = {"size": 75, "opacity": 1, "strokeWidth": 2}
    draw(rows["middle"].notna() & rows["is_sharp"], lambda c: c.mark_point(filled=True, **point), x=at("middle"), y=y, color=colour)
    draw(rows["middle"].notna() & ~rows["is_sharp"], lambda c: c.mark_point(filled=False, **point), x=at("middle"), y=y, color=colour)
    draw(rows["onset"].notna(), lambda c: c.mark_tick(thickness=2.5, size=16), x=at("onset"), y=y, color=colour)
    layers.append(alt.Chart(rows).mark_bar(opacity=0).encode(x=at("zero"), x2="last:Q", y=y, tooltip=tooltip))
    return alt.layer(*layers).properties(height=24 * len(rows) + 30).configure_view(stroke=None).configure_axis(gridOpacity=0.5)


def direction_path(rows: pd.DataFrame, *, chosen: int | None) -> alt.LayerChart:
    """The adapter's direction on its two principal axes, step by step.

    Args:
        rows: Columns ``step, pc1, pc2``.
        chosen: The step that is marked.
    """
    scale = alt.Scale(nice=True, zero=False, padding=14)
    x = alt.X("pc1:Q", title="First principal axis", scale=scale, axis=alt.Axis(tickCount=5, grid=False))
    y = alt.Y("pc2:Q", title="Second", scale=scale, axis=alt.Axis(tickCount=5, minExtent=_AXIS))
    colour = LINES[1][0]
    chart = alt.Chart(rows)
    tooltip = [alt.Tooltip("step", title="Step"), alt.Tooltip("pc1", format=".3f"), alt.Tooltip("pc2", format=".3f")]
    line = chart.mark_line(strokeWidth=1.5, opacity=0.5, color=colour).encode(x=x, y=y, order="step:Q")
    dots = chart.mark_point(filled=True, opacity=1, color=colour).encode(
        x=x, y=y, size=alt.Size("step:Q", scale=alt.Scale(range=[20, 110]), legend=None), tooltip=tooltip
    )
    names = alt.Chart(rows[_apart(rows[["pc1", "pc2"]].to_numpy())]).mark_text(align="left", dx=8, dy=-6, fontSize=11).encode(x=x, y=y, text="step:Q")
    layers = [line, dots, names]
    if chosen in set(rows["step"]):
        layers.append(alt.Chart(rows[rows["step"] == chosen]).mark_point(filled=False, size=230, strokeWidth=2, color=LINES[0][0]).encode(x=x, y=y))
    return alt.layer(*layers).properties(height=240).configure_view(stroke=None).configure_axis(gridOpacity=0.5)


def _apart(places: np.ndarray) -> list[bool]:
    """Which of (n, 2) places can be named without names over each other: from the last one back, those far enough from all named ones."""
    extent = np.ptp(places, axis=0).max() or 1.0
    named: list[int] = []
    for n in reversed(range(len(places))):
        if all(np.linalg.norm(places[n] - places[m]) > 0.12 * extent for m in named):
            named.append(n)
    return [n in named for n in range(len(places))]


def rates(points: pd.DataFrame, *, lines: Sequence[str]) -> alt.LayerChart:
    """Rates of others over training, on an axis of their own.

    Args:
        points: Columns ``line, step, value, low, high`` (per cent), ``label, n_label``.
    """
    looks = LINES[: len(lines)]
    legend = alt.Legend(orient="top", title=None, offset=2) if len(lines) > 1 else None
    colour = alt.Color("line:N", scale=alt.Scale(domain=list(lines), range=[c for c, _ in looks]), legend=legend)
    shape = alt.Shape("line:N", scale=alt.Scale(domain=list(lines), range=[s for _, s in looks]), legend=legend)
    top = min(100.0, max(20.0, 1.05 * float(points["high"].max())))
    x = alt.X("step:Q", title="Training step", scale=alt.Scale(zero=True, nice=False, padding=9), axis=alt.Axis(grid=False, tickCount=6))
    y = alt.Y("value:Q", title="Misaligned, %", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(tickCount=5, minExtent=_AXIS))
    chart = alt.Chart(points)
    spans = chart.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = chart.mark_line(strokeWidth=1.8, opacity=0.6).encode(x=x, y=y, color=colour)
    names = {"line": "Run", "step": "Step", "label": "Misaligned", "coherent": "Coherent, %", "n_label": "Answers"}
    tooltip = [alt.Tooltip(column, title=title) for column, title in names.items()]
    dots = chart.mark_point(filled=True, size=75, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)
    return alt.layer(spans, line, dots).properties(height=250).configure_view(stroke=None).configure_axis(gridOpacity=0.5)
