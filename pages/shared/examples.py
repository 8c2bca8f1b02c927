"""Windows of text around a latent's strongest tokens, coloured by its activation."""

from typing import Any

import streamlit as st

from pages.shared.look import escape


def show_windows(windows: list[dict[str, Any]], latent: int) -> None:
    """Examples under each other, the strongest first, on one scale; below them ordinary ones.

    Args:
        windows: Rows of ``saes.tables.Tables.examples``.
    """
    largest = max((max(w["values"], default=0.0) for w in windows), default=0.0)
    st.markdown("##### Where it is most active")
    st.html(_table([w for w in windows if w["is_top"]], largest))
    if ordinary := [w for w in windows if not w["is_top"]]:
        st.markdown("##### In other texts where it is active, drawn at random")
        st.html(_table(ordinary, largest))
    st.caption(
        f"Fill: activation of latent {latent}, none at 0, full at {largest:.2f}. At the left the activation of the strongest token, one window a text; at the right "
        "what kind of text it is. Texts written by the model itself are named by the voice it was asked for."
    )


def _table(windows: list[dict[str, Any]], largest: float) -> str:
    rows = []
    for window in windows:
        kind, _, voice = window["source"].partition("/")
        text = "".join(_token(t, v, largest) for t, v in zip(window["texts"], window["values"], strict=True))
        source = f"{escape(voice or kind)}<span>{escape(kind if voice else '')}</span>"
        rows.append(
            f'<div class="ps-window"><div class="ps-value">{window["value"]:.1f}</div><div class="ps-text" dir="auto">{text}</div><div class="ps-source">{source}</div></div>'
        )
    return f'<div class="ps-windows">{"".join(rows)}</div>'


def _token(text: str, value: float, largest: float) -> str:
    said = escape(text).replace("\n", "<i>↵</i> ")
    if value <= 0 or largest <= 0:
        return said
    share = round(100 * (0.12 + 0.88 * min(1.0, value / largest)))
    return f'<mark style="--ps-fill:{share}%" title="{value:.2f}">{said}</mark>'
