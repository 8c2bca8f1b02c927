"""The causal test in pictures: each candidate's effect both ways, beside its controls."""

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES, row_names

KEY = "▲ persona latent   ◆ mean difference   ● not shown causal"
_KINDS = {
    "persona latent": (ROLES["organism"].colour, "triangle-up"),
    "mean difference": (ROLES["steered"].colour, "diamond"),
    "not shown causal": (ROLES["base"].colour, "circle"),
}


def effects(rows: pd.DataFrame, controls: pd.DataFrame, *, title: str, subtitle: str) -> alt.LayerChart:
    """One way: effects with their intervals, a row a candidate, over the range of single random directions and latents drawn at random.

    Args:
        rows: Columns ``name, effect, low, high, kind, dose``, in the order drawn, in points of 100; ``kind`` as the legend has it.
        controls: Columns ``kind, low, high``, in the same points: where single controls lie.
    """
    order = rows["name"].tolist()
    y = alt.Y("name:N", sort=order, title=None, axis=row_names(210, labelFontSize=12, labelPadding=8))
    scale = alt.Scale(domain=list(_KINDS), range=[colour for colour, _ in _KINDS.values()])
    shape = alt.Scale(domain=list(_KINDS), range=[shape for _, shape in _KINDS.values()])
    base = alt.Chart(rows).encode(y=y, color=alt.Color("kind:N", scale=scale, legend=None))
    spans = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=alt.X("effect:Q", title="Points of 100", axis=alt.Axis(tickCount=6)),
        shape=alt.Shape("kind:N", scale=shape, legend=None),
        tooltip=[
            alt.Tooltip("name", title="Direction"), alt.Tooltip("effect", title="Effect", format="+.1f"), alt.Tooltip("low", title="95 % from", format="+.1f"),
            alt.Tooltip("high", title="to", format="+.1f"), alt.Tooltip("dose", title="Dose", format="+.2g"),
        ],
    )  # fmt: skip
    bands = (
        alt.Chart(controls)
        .mark_rect(opacity=0.18, color=ROLES["random"].colour)
        .encode(x="low:Q", x2="high:Q", tooltip=["kind", alt.Tooltip("low", format="+.1f"), alt.Tooltip("high", format="+.1f")])
    )
    zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(strokeDash=[4, 4], color=ROLES["random"].colour).encode(x="x:Q")
    return alt.layer(bands, zero, spans, points).properties(height=alt.Step(26), title=alt.Title(title, subtitle=subtitle)).configure_view(stroke=None)
