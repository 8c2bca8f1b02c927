"""Panels under each other as plain Vega-Lite: Altair copies every layer of each several times over, which takes up to a second a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

Spec = dict[str, Any]
"""Vega-Lite, or a part of it."""


def number(name: str, **more: Any) -> Spec:
    """A channel that draws a column of numbers."""
    return {"field": name, "type": "quantitative", **more}


def word(name: str, **more: Any) -> Spec:
    """A channel that draws a column of words."""
    return {"field": name, "type": "nominal", **more}


def layer(kind: str, encoding: Spec, *where: str | Spec, data: str = "", **look: Any) -> Spec:
    """Marks of a ``kind``.

    Args:
        where: Filters of its rows.
        data: Name of its table; the panel's where left out.
    """
    named = {"data": {"name": data}} if data else {}
    filters = {"transform": [{"filter": one} for one in where]} if where else {}
    return named | filters | {"mark": {"type": kind, **look}, "encoding": encoding}


def under(cursor: str) -> Spec:
    """The filter of rows that a selection has picked; none at first."""
    return {"param": cursor, "empty": False}


def stacked(panels: Sequence[Spec], selections: Sequence[Spec], tables: Mapping[str, pd.DataFrame], **more: Any) -> Spec:
    """A picture of panels that share selections.

    Args:
        panels: Each with layers, of which the last one is what the pointer meets.
        selections: Parameters of Vega-Lite; each holds in all panels.
        tables: Data by the names that panels and layers give.
    """
    names = [f"panel_{n}" for n in range(len(panels))]
    return {
        "$schema": alt.SCHEMA_URL,
        "config": {"view": {"stroke": None}, "axis": {"gridOpacity": 0.5}},
        "spacing": 10,
        "vconcat": [
            panel | {"layer": [*panel["layer"][:-1], panel["layer"][-1] | {"name": name}]} for panel, name in zip(panels, names, strict=True)
        ],
        "params": [one | {"views": names} for one in selections],
        "datasets": {name: rows(table) for name, table in tables.items()},
        **more,
    }  # fmt: skip


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows; what is missing is None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
