"""Latents in pictures: message by message, base against organism, and where in its range one is active."""

import altair as alt
import pandas as pd

from backend.charts.roles import ROLES

_ROLES = (ROLES["base"], ROLES["organism"])
POINT = "latent_point"


def drift(means: pd.DataFrame, variants: list[str]) -> alt.Chart:
    """A latent's mean on each message, a line a variant.

    Args:
        means: Columns ``turn, variant, mean, n``.
        variants: The base first.
    """
    colour = alt.Color(
        "variant:N", scale=alt.Scale(domain=variants, range=[r.colour for r in _ROLES[: len(variants)]]), legend=alt.Legend(title=None, orient="top")
    )
    shape = alt.Shape("variant:N", scale=alt.Scale(domain=variants, range=[r.shape for r in _ROLES[: len(variants)]]), legend=None)
    base = alt.Chart(means).encode(
        x=alt.X("turn:N", title="Message", sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("mean:Q", title="Mean activation", axis=alt.Axis(tickCount=4)),
        color=colour,
        tooltip=[
            alt.Tooltip("variant", title="Variant"),
            alt.Tooltip("turn", title="Message"),
            alt.Tooltip("mean", format=".3f"),
            alt.Tooltip("n", title="Tokens"),
        ],
    )
    return (
        (base.mark_line(opacity=0.7) + base.mark_point(filled=True, size=90, opacity=1).encode(shape=shape)).properties(height=220).configure_view(stroke=None)
    )


def scatter(latents: pd.DataFrame, *, title: str, subtitle: str, base: str, organism: str) -> alt.LayerChart:
    """Mean activation under the organism against that under the base; the diagonal is no change.

    Args:
        latents: Columns ``latent, base_mean, organism_mean, change, low, high, label, kind``; ``kind`` is increase, decrease or other.
    """
    largest = float(max(latents["base_mean"].max(), latents["organism_mean"].max(), 1e-6))
    scale = alt.Scale(domain=[0, largest * 1.04], nice=False, type="sqrt")
    kinds = ["increase", "decrease", "other"]
    colour = alt.Color(
        "kind:N", scale=alt.Scale(domain=kinds, range=[ROLES["organism"].colour, ROLES["base"].colour, "#8a8f98"]),
        legend=alt.Legend(title=None, orient="top", symbolOpacity=1),
    )  # fmt: skip
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["triangle-up", "triangle-down", "circle"]), legend=None)
    picked = alt.selection_point(name=POINT, fields=["latent"], on="click", clear=False)
    points = (
        alt.Chart(latents)
        .mark_point(filled=True)
        .encode(
            x=alt.X("base_mean:Q", title=f"Mean activation, {base}", scale=scale, axis=alt.Axis(tickCount=6)),
            y=alt.Y("organism_mean:Q", title=f"Mean activation, {organism}", scale=scale, axis=alt.Axis(tickCount=6)),
            color=colour,
            shape=shape,
            size=alt.condition("datum.kind == 'other'", alt.value(18), alt.value(90)),
            opacity=alt.condition("datum.kind == 'other'", alt.value(0.45), alt.value(1)),
            tooltip=[
                alt.Tooltip("latent:Q", title="Latent", format="d"),
                alt.Tooltip("label:N", title="Label"),
                alt.Tooltip("base_mean:Q", title=base, format=".3f"),
                alt.Tooltip("organism_mean:Q", title=organism, format=".3f"),
                alt.Tooltip("change:Q", title="Change", format="+.3f"),
                alt.Tooltip("low:Q", title="95 % from", format="+.3f"),
                alt.Tooltip("high:Q", title="to", format="+.3f"),
            ],
        )
        .add_params(picked)
    )
    diagonal = (
        alt.Chart(pd.DataFrame({"v": [0.0, largest]}))
        .mark_line(strokeDash=[4, 4], opacity=0.6, color="#888")
        .encode(x=alt.X("v:Q", scale=scale), y=alt.Y("v:Q", scale=scale))
    )
    return alt.layer(diagonal, points).properties(height=420, title=alt.Title(title, subtitle=subtitle)).configure_view(stroke=None)


def changes(latents: pd.DataFrame, *, title: str, subtitle: str) -> alt.LayerChart:
    """The largest changes with their intervals, a row a latent, its name above it: beside it a phone would have no room for the two.

    Args:
        latents: Columns ``name, change, low, high, kind``, in the order drawn.
    """
    order = latents["name"].tolist()
    colour = alt.Color("kind:N", scale=alt.Scale(domain=["increase", "decrease"], range=[ROLES["organism"].colour, ROLES["base"].colour]), legend=None)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=["increase", "decrease"], range=["triangle-up", "triangle-down"]), legend=None)
    base = alt.Chart(latents.assign(none=0.0)).encode(y=alt.Y("name:N", sort=order, axis=None), color=colour)
    names = base.mark_text(align="left", baseline="bottom", dy=-3, fontSize=12, limit=alt.expr("width")).encode(
        x=alt.value(0), text="name:N", color=alt.value("#888")
    )
    spans = base.mark_rule(strokeWidth=2, yOffset=7).encode(x=alt.X("low:Q"), x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1, yOffset=7).encode(
        x=alt.X("change:Q", title="Change of mean activation", axis=alt.Axis(tickCount=6, grid=False)),
        shape=shape,
        tooltip=[
            alt.Tooltip("name", title="Latent"), alt.Tooltip("change", format="+.3f"), alt.Tooltip("low", title="95 % from", format="+.3f"),
            alt.Tooltip("high", title="to", format="+.3f"),
        ],
    )  # fmt: skip
    zero = base.mark_tick(orient="vertical", thickness=1, size=12, yOffset=7).encode(x="none:Q", color=alt.value("#888"))
    ways = base.mark_rule(opacity=0.45, yOffset=7).encode(x="none:Q", x2="change:Q")  # from no change, so that the eye finds it
    return alt.layer(ways, zero, spans, points, names).properties(height=alt.Step(31), title=alt.Title(title, subtitle=subtitle)).configure_view(stroke=None)


def bins(counts: list[int], largest: float) -> pd.DataFrame:
    """A latent's histogram as a table: ``low, high`` of the activation and ``n`` tokens."""
    width = largest / len(counts)
    return pd.DataFrame([{"low": i * width, "high": (i + 1) * width, "n": n} for i, n in enumerate(counts)])


def histogram(rows: pd.DataFrame) -> alt.Chart:
    """How often a latent has which activation, of the tokens on which it is active; ``rows`` as ``bins`` gives them."""
    return (
        alt.Chart(rows)
        .mark_bar(color=ROLES["organism"].colour)
        .encode(
            x=alt.X("low:Q", title="Activation", axis=alt.Axis(tickCount=6)),
            x2="high:Q",
            y=alt.Y("n:Q", title="Tokens, log scale", scale=alt.Scale(type="symlog"), axis=alt.Axis(values=[0, 10, 100, 1_000, 10_000, 100_000], format="~s")),
            y2=alt.datum(0),
            tooltip=[
                alt.Tooltip("low", title="From", format=".2f"),
                alt.Tooltip("high", title="to", format=".2f"),
                alt.Tooltip("n", title="Tokens", format=","),
            ],
        )
        .properties(height=180)
        .configure_view(stroke=None)
    )
