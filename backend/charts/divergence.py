"""How far organisms' answers lie from their base: one dot a prompt, the mean with its interval over prompts."""

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES, row_names


def divergence_dots(points: pd.DataFrame, means: pd.DataFrame, *, title: str, subtitle: str) -> alt.LayerChart:
    """A row of dots for each organism.

    Args:
        points: Columns ``organism`` (title), ``prompt_id``, ``prompt``, ``divergence`` (nats a token), ``n`` (answers).
        means: Columns ``organism``, ``mean``, ``low``, ``high``, ``n_prompts``.
    """
    order = means["organism"].tolist()
    role = ROLES["organism"]
    ink = ROLES["random"].colour
    axis = alt.X("divergence:Q", title=["Nats per token against the base", "(0: as likely under the base)"])
    row = alt.Y("organism:N", sort=order, title=None, axis=row_names(220, labelFontSize=13, labelPadding=10))
    dots = (
        alt.Chart(points)
        .mark_point(size=46, filled=True, opacity=0.5, color=role.colour, shape=role.shape)
        .encode(
            x=axis,
            y=row,
            yOffset=alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-1, 1])),
            tooltip=[
                alt.Tooltip("organism", title="Organism"),
                alt.Tooltip("prompt", title="Prompt"),
                alt.Tooltip("divergence", format=".2f", title="Nats per token"),
                alt.Tooltip("n", title="Answers"),
            ],
        )
    )
    spans = alt.Chart(means).mark_rule(strokeWidth=3, color=ink).encode(x="low:Q", x2="high:Q", y=row)
    centre = (
        alt.Chart(means)
        .mark_tick(thickness=3, size=26, color=ink)
        .encode(
            x="mean:Q",
            y=row,
            tooltip=[
                "organism",
                alt.Tooltip("mean", format=".2f"),
                alt.Tooltip("low", format=".2f", title="95% from"),
                alt.Tooltip("high", format=".2f", title="95% to"),
                alt.Tooltip("n_prompts", title="Prompts"),
            ],
        )
    )
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(strokeDash=[4, 4], color=ink).encode(x="x:Q")
    return alt.layer(zero, dots, spans, centre).properties(height=alt.Step(64), title=alt.Title(title, subtitle=subtitle)).configure_view(stroke=None)
