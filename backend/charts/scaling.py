"""Rates against parameters: panels of EM and of coherence for each dataset, and small ones for each question."""

from typing import Any

import altair as alt
import pandas as pd

FAMILIES = {"Qwen": ("#16836b", "circle"), "Llama": ("#7b5fc0", "square"), "Gemma": ("#b3541e", "diamond")}
"""Colour and shape of a family; at least 3:1 against both backgrounds, and told apart by shape where colour is not seen."""

SYMBOLS = {"circle": "●", "square": "■", "diamond": "◆"}
POINT = "point"
"""Name of the selection; it gives ``id``."""

_SIZES = [0.25, 1, 4, 16, 64]
_ROOM = [0.1, 100.0]
_LEAST_COHERENT = 60.0
_AXIS = 34  # pixels of an axis' labels, so that panels stand under each other


def _family(channel: type, index: int):
    """Colour or shape of the family."""
    return channel("family:N", scale=alt.Scale(domain=list(FAMILIES), range=[look[index] for look in FAMILIES.values()]), legend=None)


def em_panel(points: pd.DataFrame, *, title: str) -> Any:
    """EM rate against size, of one dataset; a click on a point selects its ``id``.

    Args:
        points: Columns ``id, model, family, size_b, method, kind, kind_title, em, low, high, coherent`` (per cent), ``label, coherent_label, n_label,
            source, grade, note, answers``. A point without ``em`` draws its range alone.
    """
    select = alt.selection_point(name=POINT, fields=["id"], on="click", empty=False)
    spans = alt.Chart(points).transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, opacity=0.6, clip=True)
    y = alt.Y("em:Q", scale=alt.Scale(domain=[0, max(45.0, _most(points, "high"))]), axis=alt.Axis(title="EM, %", tickCount=5, minExtent=_AXIS))
    layers = [spans.encode(x=_size(named=False), y=alt.Y("low:Q"), y2="high:Q", color=_family(alt.Color, 0), tooltip=_tooltip())]
    return _styled(alt.layer(*layers, *_marks(points, "em", _size(named=False), y, select))).properties(height=270, title=alt.Title(title))


def coherence_panel(points: pd.DataFrame, *, low_coherence: float) -> Any:
    """Coherent rate against size, under ``em_panel``; the region below ``low_coherence`` (per cent) is shaded."""
    region = pd.DataFrame({"from": [_LEAST_COHERENT], "to": [low_coherence], "left": [_ROOM[0]], "right": [_ROOM[1]]})
    y = alt.Y(
        "coherent:Q",
        scale=alt.Scale(domain=[min(_LEAST_COHERENT, -_most(-points[["coherent"]], "coherent")), 100], zero=False),
        axis=alt.Axis(title="Coherent, %", tickCount=3, minExtent=_AXIS),
    )
    shade = alt.Chart(region).mark_rect(opacity=0.13, color="#777").encode(x=alt.X("left:Q"), x2="right:Q", y=alt.Y("from:Q"), y2="to:Q")
    return _styled(alt.layer(shade, *_marks(points, "coherent", _size(named=True), y))).properties(height=140)


def _most(points: pd.DataFrame, column: str) -> float:
    """The largest value of a column, 0 where it has none."""
    values = points[column].dropna()
    return float(values.max()) if len(values) else 0.0


def _size(*, named: bool) -> alt.X:
    axis = alt.Axis(title="Parameters, billions (log)" if named else None, values=_SIZES, labels=named, ticks=named, format="~g", grid=False)
    return alt.X("size_b:Q", scale=alt.Scale(type="log", domain=_ROOM, nice=False), axis=axis)


def _tooltip() -> list[alt.Tooltip]:
    names = {
        "model": "Model", "method": "Method", "label": "EM", "coherent_label": "Coherent", "n_label": "Scored answers", "kind_title": "Kind", "source": "Source",
        "grade": "How it reached us", "note": "Note", "answers": "Answers",
    }  # fmt: skip
    return [alt.Tooltip(column, title=title) for column, title in names.items()]


def _marks(points: pd.DataFrame, measure: str, x: alt.X, y: alt.Y, select: alt.Parameter | None = None) -> list[alt.Chart]:
    """Lines through the re-evaluated, filled marks for the measured, hollow ones for the printed."""
    there = alt.Chart(points).transform_filter(f"isValid(datum.{measure})")
    look = {"x": x, "y": y, "color": _family(alt.Color, 0)}
    marked = look | {"shape": _family(alt.Shape, 1), "tooltip": _tooltip()}
    lines = there.transform_filter("datum.on_line").mark_line(strokeWidth=1.5, opacity=0.5, clip=True).encode(**look)
    dots = there.transform_filter("datum.kind != 'paper'").mark_point(filled=True, size=95, opacity=1, clip=True, stroke="#888", strokeWidth=0).encode(**marked)
    if select is not None:
        dots = dots.encode(strokeWidth=alt.condition(select, alt.value(4), alt.value(0))).add_params(select)
    printed = there.transform_filter("datum.kind == 'paper'").mark_point(filled=False, size=95, strokeWidth=1.8, clip=True).encode(**marked)
    return [lines, dots, printed]


def _styled(chart: Any) -> Any:
    return chart.configure_view(stroke=None).configure_axis(gridOpacity=0.5)


def question_panel(rates: pd.DataFrame, *, title: str) -> Any:
    """EM rate against size on one question.

    Args:
        rates: Columns ``model, family, size_b, em, low, high, coherent`` (per cent), ``n, label``.
    """
    x = alt.X("size_b:Q", scale=alt.Scale(type="log", domain=[0.7, 45], nice=False), axis=alt.Axis(title=None, values=[1, 4, 8, 32], format="~g", grid=False))
    chart = alt.Chart(rates)
    names = {"model": "Model", "label": "EM", "coherent": "Coherent, %", "n": "Answers"}
    spans = chart.mark_rule(opacity=0.4).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=_family(alt.Color, 0))
    dots = chart.mark_point(filled=True, size=60, opacity=1).encode(
        x=x, y=alt.Y("em:Q", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(title="EM, %", tickCount=3)), color=_family(alt.Color, 0), shape=_family(alt.Shape, 1),
        tooltip=[alt.Tooltip(column, title=name) for column, name in names.items()],
    )  # fmt: skip
    return _styled(alt.layer(spans, dots)).properties(height=150, title=alt.Title(title))
