"""How reports look: the dashboard's own colours, and what charts need to look there as they do in it."""

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from backend.paths import CHECKOUT

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
FONT = 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
STILL_FONT = '"Liberation Sans", Arial, Helvetica, sans-serif'
"""Of pictures in files: alike in width wherever they are shown, so that what was measured here holds there."""

MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", "Liberation Mono", Menlo, Consolas, monospace'
_FAINT = 0.8  # of the text's colour over the ground: at least 4.5:1 in both themes
_SHADES = ["#e4f5ff", "#c7ebff", "#a6dcff", "#83c9ff", "#60b4ff", "#3d9df3", "#1c83e1", "#0068c9", "#0054a3", "#004280"]
_KINDS = ["#0068c9", "#83c9ff", "#ff2b2b", "#ffabab", "#29b09d", "#7defa1", "#ff8700", "#ffd16a", "#6d3fc0", "#d5dae5"]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a theme, as #rrggbb."""

    text: str
    faint: str
    """Text that matters less, and labels in charts."""

    ground: str
    soft: str
    """Ground of what is set apart."""

    line: str
    accent: str
    rise: str
    """Fill of the largest value of a token, and ``fall`` of the lowest, as in ``web/token_view.css``."""

    fall: str


@cache
def palette(theme: Theme) -> Palette:
    """The dashboard's colours."""
    told = tomllib.loads((CHECKOUT / ".streamlit" / "config.toml").read_text("utf-8"))["theme"][theme]
    text, ground = told["textColor"], told["backgroundColor"]
    rise, fall = {"light": ("#f0841a", "#5aa4e6"), "dark": ("#a34e08", "#1d68b0")}[theme]
    return Palette(text, mixed(text, ground, _FAINT), ground, told["secondaryBackgroundColor"], told["borderColor"], told["primaryColor"], rise, fall)


def mixed(over: str, ground: str, part: float) -> str:
    """``part`` (0-1) of one colour over another."""
    pairs = zip(bytes.fromhex(over[1:]), bytes.fromhex(ground[1:]), strict=True)
    return "#" + bytes(round(part * a + (1 - part) * b) for a, b in pairs).hex()


def chart_config(theme: Theme, font: str) -> dict[str, Any]:
    """Vega-Lite's configuration, in which Streamlit's theme for charts and our style sheet for them are put together."""
    c = palette(theme)
    words = {"labelColor": c.faint, "titleColor": c.faint, "labelFontWeight": "normal", "titleFontWeight": "normal"}
    is_dark = theme == "dark"
    return {
        "font": font,
        "background": c.ground,
        "title": {"anchor": "start", "color": c.text, "subtitleColor": c.faint, "fontSize": 16, "fontWeight": 600, "subtitleFontSize": 13, "subtitlePadding": 6, "offset": 18},
        "header": words | {"labelFontSize": 12, "titleFontSize": 14},
        "axis": words | {
            "labelFontSize": 12, "titleFontSize": 13, "ticks": False, "domain": False, "gridColor": mixed(c.text, c.ground, 0.13), "domainColor": c.line, "tickColor": c.line,
            "labelFlush": True, "labelFlushOffset": 1, "labelLimit": 160, "titlePadding": 14, "labelPadding": 12, "labelSeparation": 4, "labelOverlap": True,
        },
        "axisDiscrete": {"grid": False},
        "legend": words | {"labelFontSize": 13, "titleFontSize": 13, "titlePadding": 6, "columnPadding": 10, "rowPadding": 4, "padding": 6},
        "range": {
            "category": [_KINDS[i] for i in (1, 0, 3, 2, 5, 4, 7, 6, 8, 9)] if is_dark else _KINDS,
            "ramp": _SHADES[::-1] if is_dark else _SHADES,
            "heatmap": _SHADES[::-1] if is_dark else _SHADES,
        },
        "view": {"stroke": None, "continuousHeight": 320, "continuousWidth": 640},
        "mark": {"tooltip": {"content": "encoding"}},
        "bar": {"discreteBandSize": {"band": 0.85}},
    }  # fmt: skip
