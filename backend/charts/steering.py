"""Steering in pictures: a measure by dose with the random directions as a band, and the change of log-odds by dose."""

from collections.abc import Sequence

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES

POINT = "dose_point"
"""Name of the selection; it gives ``variant``."""

STYLES = ((ROLES["steered"].colour, "diamond"), ("#16836b", "square"), ("#7b5fc0", "triangle-up"), ("#b3541e", "circle"))
"""Colour and shape of the directions in one picture, in their order; their number is the most that a picture shows."""

_PAST = "#8a8f98"
_GREY = ROLES["random"].colour
_AXIS = 38  # pixels of an axis' labels, so that panels stand under each other


def response(
    points: pd.DataFrame,
    band: pd.DataFrame,
    windows: pd.DataFrame,
    *,
    directions: Sequence[str],
    measure: str,
    dose: str,
    height: int,
    top: float,
    unsteered: float | None = None,
) -> alt.LayerChart:
    """A measure by dose, a line a direction; points past the incoherence limit are hollow and grey. A click on a point selects its ``variant``.

    Args:
        points: Columns ``direction, dose, value, low, high`` (per cent), ``is_past, variant, label, n_label``; dose 0 stands in it once a direction.
        band: Columns ``dose, low, high`` (per cent), of the random directions.
        windows: Columns ``direction, start, end``: useful doses, drawn as bars at the foot.
        measure: Title of the axis.
        dose: The same of the horizontal one; empty where the panel below has it.
        top: Per cent, where the axis ends at least.
        unsteered: Per cent, of the plain source, where no dose stands for it.
    """
    largest = max(top, unsteered or 0.0, float(points["high"].max(skipna=True)), float(band["high"].max(skipna=True)) if len(band) else 0.0)
    x = alt.X("dose:Q", title=dose or None, scale=alt.Scale(nice=False, padding=14), axis=alt.Axis(tickCount=8, grid=False))
    foot = 0.035 * largest  # under 0, a line for each direction that has a window
    lowest = -foot * (len(directions) + 0.5) if len(windows) else 0.0
    scale = alt.Scale(domain=[lowest, min(100.0, largest * 1.05)], nice=False)
    y = alt.Y("value:Q", title=measure, scale=scale, axis=alt.Axis(tickCount=5, minExtent=_AXIS))
    looks = STYLES[: len(directions)]
    colour = alt.Color("direction:N", scale=alt.Scale(domain=list(directions), range=[c for c, _ in looks]), legend=None)
    shape = alt.Shape("direction:N", scale=alt.Scale(domain=list(directions), range=[s for _, s in looks]), legend=None)
    shown = alt.condition("datum.is_past", alt.value(_PAST), colour)
    tooltip = [
        alt.Tooltip("direction", title="Direction"), alt.Tooltip("dose", title="Dose"), alt.Tooltip("label", title=measure), alt.Tooltip("n_label", title="n"),
        alt.Tooltip("state", title="Limit"),
    ]  # fmt: skip
    told = alt.Chart(points.assign(state=["past the incoherence limit" if past else "within" for past in points["is_past"]]))
    there = told.transform_filter("isValid(datum.value)")
    layers: list[alt.Chart] = [alt.Chart(pd.DataFrame({"dose": [0.0]})).mark_rule(strokeDash=[4, 4], color="#888").encode(x=x)]
    if unsteered is not None:
        layers.append(alt.Chart(pd.DataFrame({"value": [unsteered]})).mark_rule(strokeDash=[4, 4], color=ROLES["base"].colour).encode(y=y))
    if len(band):
        edges = alt.Chart(band)
        layers.append(edges.mark_area(opacity=0.22, color=_GREY).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"))
        layers += [edges.mark_line(strokeWidth=1, strokeDash=[2, 2], color=_GREY).encode(x=x, y=alt.Y(f"{edge}:Q")) for edge in ("low", "high")]
    layers.append(there.mark_rule(strokeWidth=1.6, opacity=0.75).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=shown))
    layers.append(there.mark_line(strokeWidth=1.8, opacity=0.55).encode(x=x, y=y, color=colour))
    marked = {"x": x, "y": y, "shape": shape, "tooltip": tooltip}
    within = there.transform_filter("!datum.is_past").mark_point(filled=True, size=95, opacity=1).encode(color=colour, **marked)
    past = there.transform_filter("datum.is_past").mark_point(filled=False, size=95, strokeWidth=1.8, opacity=1).encode(color=alt.value(_PAST), **marked)
    picked = alt.selection_point(name=POINT, fields=["variant"], on="click", empty=False)
    hit = there.mark_point(filled=True, size=420, opacity=0).encode(x=x, y=y, tooltip=tooltip).add_params(picked)  # a point is small for a finger
    layers += [within, past, hit]
    for number, direction in enumerate(directions):
        own = windows[windows["direction"] == direction].assign(place=-foot * (number + 1))
        if len(own):
            bars = alt.Chart(own).mark_rule(strokeWidth=5, strokeCap="round", color=looks[number][0])
            layers.append(bars.encode(x=alt.X("start:Q"), x2="end:Q", y=alt.Y("place:Q")))
    return alt.layer(*layers).properties(height=height).configure_view(stroke=None).configure_axis(gridOpacity=0.5)


def odds(rows: pd.DataFrame, *, dose: str) -> alt.LayerChart:
    """Change of the log-odds against the plain source, by dose.

    Args:
        rows: Columns ``dose, change, low, high`` (nats a token), ``level, label``.
        dose: Title of the horizontal axis.
    """
    role = ROLES["steered"]
    chart = alt.Chart(rows)
    x = alt.X("dose:Q", title=dose, scale=alt.Scale(nice=False, padding=14), axis=alt.Axis(tickCount=8, grid=False))
    y = alt.Y("change:Q", title="Change, nats a token", axis=alt.Axis(tickCount=5, minExtent=_AXIS))
    zero = alt.Chart(pd.DataFrame({"change": [0.0]})).mark_rule(strokeDash=[4, 4], color="#888").encode(y=y)
    spans = chart.mark_rule(strokeWidth=2, color=role.colour).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
    line = chart.mark_line(strokeWidth=1.6, opacity=0.5, color=role.colour).encode(x=x, y=y)
    tooltip = [alt.Tooltip("dose", title=dose), alt.Tooltip("label", title="Change (95 %)"), alt.Tooltip("level", title="Log-odds", format="+.2f")]
    dots = chart.mark_point(filled=True, size=90, opacity=1, color=role.colour, shape=role.shape).encode(x=x, y=y, tooltip=tooltip)
    return alt.layer(zero, spans, line, dots).properties(height=220).configure_view(stroke=None).configure_axis(gridOpacity=0.5)


def crossed(cells: pd.DataFrame, *, title: str, subtitle: str) -> alt.LayerChart:
    """What each direction does to each model: change of the rate in points, on a scale that is even around 0.

    Args:
        cells: Columns ``direction, source, change`` (points, None where there is no rate), ``text, label, random, state``.
    """
    chart = alt.Chart(cells)
    x = alt.X("source:N", title="Model", sort=None, axis=alt.Axis(orient="top", labelAngle=0))
    y = alt.Y("direction:N", title="Direction", sort=None, axis=alt.Axis(labelLimit=220, labelFlush=False))
    most = max([5.0, *pd.to_numeric(cells["change"]).abs().dropna()])
    colour = alt.Color("change:Q", scale=alt.Scale(domain=[-most, 0, most], range=["#2f80c2", "#f4f4f4", "#d2600c"]), legend=None)
    tooltip = [
        alt.Tooltip("direction", title="Direction"), alt.Tooltip("source", title="Model"), alt.Tooltip("label", title="Change (95 %)"),
        alt.Tooltip("random", title="Random directions"), alt.Tooltip("state", title="Says"),
    ]  # fmt: skip
    tiles = chart.mark_rect(stroke="#8a8f98", strokeWidth=0.5).encode(x=x, y=y, color=colour, tooltip=tooltip)
    ink = (
        alt.when("!isValid(datum.change)").then(alt.value(_GREY))  # on the page itself, which is light or dark
        .when(f"abs(datum.change) > {0.6 * most}").then(alt.value("#ffffff"))
        .otherwise(alt.value("#1c1e21"))
    )  # fmt: skip
    words = chart.mark_text(fontSize=13).encode(x=x, y=y, text="text:N", color=ink, tooltip=tooltip)
    return (
        alt.layer(tiles, words)
        .properties(  # a height in steps is that of the tiles alone; a number would be fitted round title and axis, and leave them none
            height=alt.Step(48), title=alt.Title(title, subtitle=subtitle)
        )
        .configure_view(stroke=None)
    )
