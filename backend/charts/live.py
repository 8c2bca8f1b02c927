"""A training as it goes: loss a step, and the rate of misaligned answers at some checkpoints."""

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES

_HEIGHT = 200


def loss(steps: pd.DataFrame, *, n_steps: int) -> alt.LayerChart:
    """Args: steps: Columns ``step, loss`` (nats a token)."""
    chart = alt.Chart(steps)
    x = alt.X("step:Q", title="Step", scale=alt.Scale(domain=[0, n_steps], nice=False), axis=alt.Axis(grid=False, tickMinStep=1, format="d"))
    y = alt.Y("loss:Q", title="Loss, nats a token", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    tooltip = [alt.Tooltip("step", title="Step"), alt.Tooltip("loss", title="Loss", format=".3f")]
    dots = chart.mark_point(filled=True, size=18, opacity=0.45, color=ROLES["organism"].colour).encode(x=x, y=y, tooltip=tooltip)
    mean = chart.transform_window(smooth="mean(loss)", frame=[-9, 0]).mark_line(strokeWidth=2, color=ROLES["organism"].colour).encode(x=x, y=alt.Y("smooth:Q"))
    return alt.layer(dots, mean).properties(height=_HEIGHT).configure_view(stroke=None).configure_axis(gridOpacity=0.5)


def rates(points: pd.DataFrame, *, n_rows: int) -> alt.LayerChart:
    """Args: points: Columns ``rows, value, low, high`` (per cent), ``label``."""
    chart = alt.Chart(points)
    x = alt.X("rows:Q", title="Rows seen", scale=alt.Scale(domain=[0, n_rows], nice=False, padding=8), axis=alt.Axis(grid=False))
    y = alt.Y("value:Q", title="Misaligned, %", scale=alt.Scale(domain=[0, max(20.0, float(points["high"].max()))]), axis=alt.Axis(tickCount=5))
    tooltip = [alt.Tooltip("rows", title="Rows seen"), alt.Tooltip("label", title="Misaligned (95 %)")]
    role = ROLES["organism"]
    bars = chart.mark_rule(strokeWidth=1.6, color=role.colour).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
    line = chart.mark_line(strokeWidth=1.6, opacity=0.5, color=role.colour).encode(x=x, y=y)
    dots = chart.mark_point(filled=True, size=90, opacity=1, color=role.colour, shape=role.shape).encode(x=x, y=y, tooltip=tooltip)
    return alt.layer(bars, line, dots).properties(height=_HEIGHT).configure_view(stroke=None).configure_axis(gridOpacity=0.5)
