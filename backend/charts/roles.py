"""One colour a role on every page and picture: distinct for colour-blind readers (Okabe and Ito 2008, evened in lightness),
at least 3:1 against the light and the dark background; a symbol goes with each, so that colour is never alone."""

from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

RoleName = Literal["base", "organism", "steered", "random"]


@dataclass(frozen=True, slots=True)
class Role:
    """How what answers is drawn."""

    label: str
    colour: str
    symbol: str
    shape: str
    """Vega's name of the point's shape."""


ROLES: dict[RoleName, Role] = {
    "base": Role("base", "#2f80c2", "●", "circle"),
    "organism": Role("organism", "#d2600c", "▲", "triangle-up"),
    "steered": Role("steered", "#b0569b", "◆", "diamond"),
    "random": Role("random control", "#808790", "✕", "cross"),
}


def row_names(limit: int, **more: Any) -> alt.Axis:
    """The axis of a picture whose rows have names: no line, no ticks, each name level with its row, ``limit`` pixels at most."""
    return alt.Axis(labelLimit=limit, labelFlush=False, ticks=False, domain=False, **more)
