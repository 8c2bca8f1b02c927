"""Tokens with a value each, drawn as text: a component whose panels show the same ids for several models on one stated scale.

What is drawn is worked out here (boxes, bands, scales); ``backend/reports/web/token_view.js`` draws it and says which token was clicked. A box is a token, or the tokens
that share a character. Text reaches the page as text alone, never as HTML.
"""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import streamlit as st

from backend.errors import InputError
from backend.reports.web import web_file
from backend.text.spans import Token
from pages.shared import keep

_COMPONENT = st.components.v2.component("personascope_token_view", css=web_file("token_view.css"), js=web_file("token_view.js"))


@dataclass(frozen=True, slots=True)
class Panel:
    """What one panel shows of the tokens."""

    title: str
    """Such as "base", "Reckless", "Reckless - base"."""

    values: Sequence[float]
    """(n_tokens,); one that is not finite is drawn as missing."""

    is_signed: bool = False
    """A difference, drawn on a diverging scale centred at 0; otherwise 0 and below have no fill."""


def show(
    tokens: Sequence[Token],
    panels: Sequence[Panel],
    *,
    name: str,
    key: str,
    quantiles: Sequence[float] = (),
    with_special: bool = False,
    selected: int | None = None,
    turns: Sequence[str] = (),
    said: str = "",
) -> int | None:
    """Draw tokens, a panel each, and return the place of the token that was clicked or pinned with Enter; None before that.

    A click stands through reruns until the tokens are others or the caller moves ``selected`` elsewhere.

    Args:
        name: What the values are, such as "latent 1234 of SAE smol-l16, layer 16".
        quantiles: (101,), ascending: the values where the latent is active in a corpus, for the percentile in the tooltip.
        with_special: Special and template tokens are coloured too and count for the scale.
        selected: Place of the token that is pinned while no click stands; one that is not there pins none.
        turns: Role name of each message, for bands.
        said: What the text is.

    Raises:
        InputError: A panel has not one value for each token.
    """
    drawn = payload(tokens, panels, name=name, quantiles=quantiles, with_special=with_special, turns=turns)
    keep.tokens(key, title=name[:1].upper() + name[1:], text=said, drawing=drawn)
    click = _standing_click(key, drawn["tokens"], selected)
    pin = selected if click is None else click
    _COMPONENT(key=key, data=drawn | {"pin": pin if pin is not None and 0 <= pin < len(tokens) else None})
    return click


def draw(drawing: dict[str, Any], *, key: str) -> None:
    """Draw what was kept of tokens (``payload``)."""
    _COMPONENT(key=key, data=drawing | {"pin": None})


def payload(
    tokens: Sequence[Token], panels: Sequence[Panel], *, name: str, quantiles: Sequence[float] = (), with_special: bool = False, turns: Sequence[str] = ()
) -> dict[str, Any]:
    """What the browser is sent: every string once, values to four significant digits, a missing one as None.

    ``scales`` are the largest value of all unsigned panels and the largest absolute one of all signed panels, over the tokens that are coloured.

    Raises:
        InputError: A panel has not one value for each token.
    """
    for panel in panels:
        if len(panel.values) != len(tokens):
            raise InputError(f"Panel {panel.title} has {len(panel.values)} values for {len(tokens)} tokens. Give one value for each token.")
    boxes = [list(box) for _, box in groupby(enumerate(tokens), lambda item: _box(*item))]
    firsts = [box[0][1] for box in boxes]
    text = {
        "ids": [token.id for token in tokens],
        "sizes": [len(box) for box in boxes],
        "texts": [token.text for token in firsts],
        "roles": "".join(token.role[0] for token in firsts),
        "turns": [token.turn for token in firsts],
        "bands": _bands(firsts) if turns else [[0, -1]],
        "names": list(turns),
    }
    coloured = [with_special or token.role == "content" for token in tokens]
    return {
        **text,
        "tokens": zlib.crc32(json.dumps(text).encode()),
        "name": name,
        "panels": [{"title": panel.title, "signed": panel.is_signed, "values": [_rounded(v) for v in panel.values]} for panel in panels],
        "scales": [_scale([p for p in panels if p.is_signed == is_signed], coloured) for is_signed in (False, True)],
        "special": with_special,
        "quantiles": [_rounded(q) for q in quantiles],
    }


def _box(place: int, token: Token) -> tuple[Any, ...]:
    """Equal for neighbours that share a character; a control token has a box of its own."""
    return (place,) if token.role == "special" else (token.start, token.end, token.text, token.role)


def _bands(firsts: Sequence[Token]) -> list[list[int]]:
    """(first box, turn) of each message. The template's tokens between two messages open the second from the first control token on."""
    bands = [[0, -1]]
    opening: int | None = None
    for place, token in enumerate(firsts):
        if token.turn >= 0:
            if token.turn != bands[-1][1]:
                bands.append([place if opening is None else opening, token.turn])
            opening = None
        elif opening is None and token.role == "special":
            opening = place
    if opening is not None:
        bands.append([opening, -1])
    return bands[1:] if len(bands) > 1 and bands[1][0] == 0 else bands


def _scale(panels: Sequence[Panel], coloured: Sequence[bool]) -> float:
    """The value of the full colour; 0 where there is none."""
    values = (abs(v) if panel.is_signed else v for panel in panels for v, counts in zip(panel.values, coloured, strict=True) if counts and math.isfinite(v))
    return _rounded(max([0.0, *values])) or 0.0


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _standing_click(key: str, tokens: int, selected: int | None) -> int | None:
    """Where the last click was, if it was on these tokens and ``selected`` has not been moved since, other than to it."""
    click: dict[str, int] = (st.session_state.get(key) or {}).get("clicked") or {}
    memory = st.session_state.setdefault(f"{key}_memory", {"selected": selected, "returned": None, "over": {}})
    if selected not in (memory["selected"], memory["returned"]):
        memory["over"] = click
    place = click["place"] if click.get("tokens") == tokens and click != memory["over"] else None
    st.session_state[f"{key}_memory"] = memory | {"selected": selected, "returned": place}
    return place
