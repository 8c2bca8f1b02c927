"""Panels under each other as plain Vega-Lite: Altair copies every layer of each several times over, which takes over twenty times as long."""

from collections.abc import Sequence
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


HAS_SPAN = "isValid(datum.low)"
"""The filter of rows that have an interval."""


def span() -> Spec:
    """Channels that draw an interval."""
    return {"y": number("low"), "y2": {"field": "high"}}


def layer(kind: str, encoding: Spec, *where: str | Spec, table: pd.DataFrame | None = None, **look: Any) -> Spec:
    """Marks of a ``kind``.

    Args:
        where: Filters of its rows.
        table: The rows; the panel's where left out.
    """
    own = {"data": table} if table is not None else {}
    filters = {"transform": [{"filter": one} for one in where]} if where else {}
    return own | filters | {"mark": {"type": kind, **look}, "encoding": encoding}


def under(cursor: str) -> Spec:
    """The filter of rows that a selection has picked; none at first."""
    return {"param": cursor, "empty": False}


def stacked(panels: Sequence[Spec], selections: Sequence[Spec], **more: Any) -> Spec:
    """A picture of panels that share selections; a table that several layers are drawn from is written once.

    Args:
        panels: Each with its table as ``data`` and its layers, of which the last one is what the pointer meets.
        selections: Parameters of Vega-Lite; each holds in all panels.
    """
    tables: dict[int, pd.DataFrame] = {}

    def named(part: Spec) -> Spec:
        if "data" not in part:
            return part
        tables[id(part["data"])] = part["data"]
        return part | {"data": {"name": f"table {list(tables).index(id(part['data']))}"}}

    views = [f"panel_{n}" for n in range(len(panels))]
    drawn = []
    for panel, view in zip(panels, views, strict=True):
        *layers, met = map(named, panel["layer"])
        drawn.append(named(panel) | {"layer": [*layers, met | {"name": view}]})
    return {
        "$schema": alt.SCHEMA_URL, "config": {"view": {"stroke": None}, "axis": {"gridOpacity": 0.5}}, "spacing": 10, "vconcat": drawn,
        "params": [one | {"views": views} for one in selections], "datasets": {f"table {n}": _rows(table) for n, table in enumerate(tables.values())}, **more,
    }  # fmt: skip


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows; what is missing is None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
