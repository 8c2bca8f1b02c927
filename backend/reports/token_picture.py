"""Tokens with values as a still picture: the stretch around the strongest one, laid out in a typewriter's columns."""

import unicodedata
from collections.abc import Iterator
from typing import Any

from backend.reports.look import MONO, Theme, mixed, palette

COLUMNS = 88
MOST_LINES = 7
"""Of a panel."""

_CHARACTER, _LINE, _HEAD = 8.6, 27, 34  # pixels
_FLOOR = 0.1  # as in web/token_view.js: part of the full colour for the smallest value above 0


def token_spec(drawing: dict[str, Any], theme: Theme) -> dict[str, Any]:
    """Vega-Lite of what ``pages.shared.token_view.payload`` gives: every panel with the same stretch of the text."""
    values = [_of_boxes(panel["values"], drawing["sizes"]) for panel in drawing["panels"]]
    lines = _lines(drawing, _strongest(drawing, values[-1]) if values else 0)
    marks: list[dict[str, Any]] = []
    top = 0.0
    for panel, told in zip(drawing["panels"], values, strict=True):
        most = drawing["scales"][bool(panel["signed"])] or 0.0
        scale = f"{-most:g} to {most:+g}".replace("-", "\u2212") if panel["signed"] else f"0 to {most:g}"
        marks.append({"x": 0, "at": 0, "y": top + 10, "y2": top + 10, "fill": None, "text": f"{panel['title']}  ({scale})", "kind": "head"})
        top += _HEAD
        for line in lines:
            marks += [_mark(drawing, box, column, top, told[box], most, panel["signed"], theme) for box, column in line]
            top += _LINE
        top += _LINE * 0.6
    return _spec(marks, top, theme)


def _of_boxes(values: list[float | None], sizes: list[int]) -> list[float]:
    """The strongest value of each box; 0 where there is none."""
    ends = iter(values)
    return [max((next(ends) or 0.0 for _ in range(size)), key=abs, default=0.0) for size in sizes]


def _strongest(drawing: dict[str, Any], values: list[float]) -> int:
    counts = [abs(v) if drawing["special"] or role == "c" else 0.0 for v, role in zip(values, drawing["roles"], strict=True)]
    return max(range(len(counts)), key=counts.__getitem__, default=0)


def _lines(drawing: dict[str, Any], centre: int) -> list[list[tuple[int, int]]]:
    """Lines of (box, column), with the one of the strongest in the middle where there is text on both sides."""
    lines: list[list[tuple[int, int]]] = [[]]
    column = 0
    for box, text in enumerate(drawing["texts"]):
        width = _width(_shown(text))
        if column and column + width > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((box, column))
        column += width
        if text.endswith("\n"):
            lines.append([])
            column = 0
    lines = [line for line in lines if line]
    at = next((n for n, line in enumerate(lines) if line[-1][0] >= centre), 0)
    start = max(0, min(at - MOST_LINES // 2, len(lines) - MOST_LINES))
    return lines[start : start + MOST_LINES]


def _mark(drawing: dict[str, Any], box: int, column: int, top: float, value: float, most: float, is_signed: bool, theme: Theme) -> dict[str, Any]:
    c = palette(theme)
    counts = drawing["special"] or drawing["roles"][box] == "c"
    part = min(1.0, abs(value) / most) if counts and most and (value > 0 or (min(drawing["scales"]) is not None and value)) else 0.0
    fill = mixed(c.rise if value > 0 else c.fall, c.ground, _FLOOR + (1 - _FLOOR) * part) if part else None
    text = _shown(drawing["texts"][box])
    x, indent = column * _CHARACTER, (len(text) - len(text.lstrip(" "))) * _CHARACTER  # SVG leaves out spaces at the ends
    kind = "text" if drawing["roles"][box] == "c" else "template"
    return {
        "x": x,
        "x2": x + _width(text) * _CHARACTER - 1,
        "at": x + indent,
        "y": top,
        "y2": top + _LINE - 5,
        "fill": fill,
        "text": text.strip(" "),
        "kind": kind,
    }


def _shown(text: str) -> str:
    """At most a line of it, all that cannot be seen as a sign of its own."""
    return "".join(_signs(text))[:COLUMNS] or "\u25a1"


def _signs(text: str) -> Iterator[str]:
    for character in text:
        yield {"\n": "\u21b5", "\t": "\u2192"}.get(character) or ("\u25a1" if unicodedata.category(character)[0] == "C" else character)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _spec(marks: list[dict[str, Any]], height: float, theme: Theme) -> dict[str, Any]:
    c = palette(theme)
    place = {name: {"field": name, "type": "quantitative", "scale": None, "axis": None} for name in ("x", "y")}
    ends = {name: {"field": name} for name in ("x2", "y2")}
    words = {"x": {**place["x"], "field": "at"}, "y": {**place["y"], "field": "middle"}, "text": {"field": "text"}}

    def text(kind: str, colour: str, **look: Any) -> dict[str, Any]:
        return {
            "transform": [{"filter": f"datum.kind == '{kind}'"}, {"calculate": "(datum.y + datum.y2) / 2", "as": "middle"}],
            "mark": {"type": "text", "align": "left", "baseline": "middle", "color": colour, "tooltip": None, "limit": 0, **look},
            "encoding": words,
        }

    return {
        "width": COLUMNS * _CHARACTER,
        "height": height,
        "data": {"values": marks},
        "layer": [
            {
                "transform": [{"filter": "datum.fill != null"}],
                "mark": {"type": "rect", "cornerRadius": 3, "tooltip": None},
                "encoding": place | ends | {"color": {"field": "fill", "type": "nominal", "scale": None}},
            },
            text("text", c.text, font=MONO, fontSize=14),
            text("template", c.faint, font=MONO, fontSize=14),
            text("head", c.text, fontSize=14, fontWeight=600),
        ],
    }
