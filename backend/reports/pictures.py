"""Pictures of findings outside the dashboard: Vega-Lite for browsers, PNG and SVG without one.

Nothing that a specification names is fetched: what is drawn lies in it.
"""

import json
import re
import textwrap
from typing import Any

from backend.errors import ConfigError
from backend.reports.look import STILL_FONT, Theme, chart_config, palette
from backend.reports.records import Item
from backend.reports.token_picture import token_spec
from backend.reports.words import readable

WIDTH = 820
"""Of a picture in a file of its own, in pixels at scale 1."""


def is_picture(item: Item) -> bool:
    return item.kind in ("chart", "tokens") and bool(item.drawing)


def bare_spec(item: Item) -> dict[str, Any]:
    """A chart's specification without the title, which the report says in words of its own."""
    return _clean({name: part for name, part in (item.drawing or {}).items() if name not in ("title", "$schema", "usermeta")})


def svg(item: Item, theme: Theme = "light", *, width: int = WIDTH, is_titled: bool = True) -> str:
    """A picture as SVG, its background the theme's.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        spec = token_spec(item.drawing or {}, theme) if item.kind == "tokens" else bare_spec(item)
        if is_titled:
            spec = spec | {"title": _title(item, width)}
        _refuse_images(spec := _clean(spec))
        if item.kind == "chart":
            spec = _fitted(spec, width, theme)
        return _drawn(spec, theme)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as fault:
        raise ConfigError(f"The picture “{item.title[:80]}” is damaged and cannot be drawn. Take it out of the finding, or keep it anew.") from fault


def png(picture: str, scale: float = 2.5) -> bytes:
    """An SVG as PNG, so many pixels for each of its own."""
    import vl_convert

    return vl_convert.svg_to_png(picture, scale=scale)


def size(picture: str) -> tuple[float, float]:
    """Width and height of an SVG in pixels."""
    found = re.search(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"', picture)
    return (float(found[1]), float(found[2])) if found else (WIDTH, WIDTH / 2)


def _clean(part: Any) -> Any:
    """The same with text that SVG, and Vega's expressions, can hold."""
    if isinstance(part, dict):
        return {readable(str(name)): _clean(inner) for name, inner in part.items()}
    if isinstance(part, list):
        return [_clean(inner) for inner in part]
    return readable(part) if isinstance(part, str) else part


def _refuse_images(spec: dict[str, Any]) -> None:
    """Images would be fetched when a PNG is made; no chart here has any.

    Raises:
        ValueError: This has.
    """
    if re.search(r'"(mark|type)": "image"', json.dumps({name: part for name, part in spec.items() if name != "datasets"})):
        raise ValueError("image")


def _drawn(spec: dict[str, Any], theme: Theme) -> str:
    import vl_convert  # starts a JavaScript engine

    picture = vl_convert.vegalite_to_svg(spec, config=chart_config(theme, STILL_FONT), allowed_base_urls=[])
    # The grey of labels inside charts is too faint to read; in the dashboard its style sheet sees to that.
    return re.sub(r'(<text[^>]*? fill=")#888(?:888)?(")', rf"\g<1>{palette(theme).faint}\g<2>", picture)


def _fitted(spec: dict[str, Any], width: int, theme: Theme) -> dict[str, Any]:
    """Over the whole width, as the dashboard draws them; charts beside each other keep their own."""
    if "vconcat" in spec:  # what its axes take is known when it has been drawn
        taken = size(_drawn(_stacked(spec, width), theme))[0] - width
        return _stacked(spec, width - taken)
    if any(name in spec for name in ("hconcat", "concat", "facet", "repeat")):
        return spec
    return spec | {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}


def _stacked(spec: dict[str, Any], width: float) -> dict[str, Any]:
    return spec | {"vconcat": [part | {"width": width} for part in spec["vconcat"]]}


def _title(item: Item, width: int) -> dict[str, Any]:
    return {
        "text": textwrap.wrap(item.title, int(width / 8.4), max_lines=4, placeholder=" …"),
        "subtitle": textwrap.wrap(item.text, int(width / 6.4), max_lines=6, placeholder=" …"),
    }
