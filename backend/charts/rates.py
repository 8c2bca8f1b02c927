"""Rates of a few variants beside each other: a dot and its interval a row."""

from collections.abc import Sequence
from typing import Literal

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES, row_names


def rate_rows(
    rates: pd.DataFrame,
    *,
    unit: str,
    title: str,
    subtitle: str,
    zero_line: bool = False,
    domain: tuple[float, float] | None = None,
    ticks: Sequence[float] | None = None,
) -> alt.LayerChart:
    """One row a variant.

    Args:
        rates: Columns ``name, role, value, low, high, label, n_label``; a row without ``value`` is named and has no mark.
        unit: Title of the axis.
        zero_line: Draw a line at 0, for measures that have a sign.
    """
    order = rates["name"].tolist()
    if domain is None:
        low, high = min(0.0, float(rates["low"].min())), max(0.0, float(rates["high"].max()))
        domain = (low - 0.05 * (high - low), high + 0.05 * (high - low))
    scale = alt.Scale(domain=list(domain), nice=False)
    x = alt.X("value:Q", title=unit, scale=scale, axis=alt.Axis(values=list(ticks), tickCount=8) if ticks else alt.Axis(tickCount=8))
    y = alt.Y("name:N", sort=order, title=None, axis=row_names(240, labelFontSize=13, labelPadding=10))
    roles = list(dict.fromkeys(rates["role"]))
    colour = alt.Color("role:N", scale=alt.Scale(domain=roles, range=[ROLES[r].colour for r in roles]), legend=None)
    shape = alt.Shape("role:N", scale=alt.Scale(domain=roles, range=[ROLES[r].shape for r in roles]), legend=None)
    base = alt.Chart(rates)
    spans = base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colour)
    tooltip = [alt.Tooltip("name", title="Variant"), alt.Tooltip("label", title=unit), alt.Tooltip("n_label", title="n")]
    dots = (
        base.transform_filter("isValid(datum.value)").mark_point(filled=True, size=130, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)
    )
    middle = sum(domain) / 2  # a label stands on the side that has more room, so that phones do not cut it
    sides: tuple[tuple[str, Literal["left", "right"], int, str], ...] = (
        (f"datum.high <= {middle}", "left", 10, "high:Q"),
        (f"datum.high > {middle}", "right", -10, "low:Q"),
    )
    words = [
        base.transform_filter(where).mark_text(align=align, dx=dx, fontSize=13).encode(x=alt.X(edge, scale=scale), y=y, text="label:N", color=alt.value("#888"))
        for where, align, dx, edge in sides
    ]
    layers = [spans, dots, *words]
    if zero_line:
        layers.insert(0, alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(strokeDash=[4, 4], color=ROLES["random"].colour).encode(x=alt.X("x:Q", scale=scale)))
    return alt.layer(*layers).properties(height=alt.Step(44), title=alt.Title(title, subtitle=subtitle)).configure_view(stroke=None)
