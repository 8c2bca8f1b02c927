"""What is not on this machine, said once, with a button that fetches it."""

import streamlit as st

from backend.models.registry import Registry
from backend.models.sources import Availability
from pages.shared import gate, look
from pages.shared.service import Fetch, current_fetch, start_fetch


def show(variants: list[str], here: dict[str, Availability], known: Registry, *, note: str = "") -> None:
    """What keeps the chosen variants from answering live, each thing once, with ``note`` behind it."""
    told: set[str] = set()
    for variant in variants:
        state = here[variant]
        if state.state == "here" or state.sentence in told:
            continue
        told.add(state.sentence)
        model, organism = known.resolve(variant)
        with st.container(border=True):
            st.markdown(look.plain(f"{state.sentence} {note}"))
            if state.command and not gate.is_off("Fetching models"):
                fetch = current_fetch(organism.key if organism else model.key)
                if fetch is not None and (fetch.is_live or fetch.fault):
                    _follow(fetch)
                if fetch is None or not fetch.is_live:
                    st.button("Fetch it now", key=f"fetch_{variant}", on_click=start_fetch, args=(model, organism), type="primary", icon=":material/download:")
                    st.caption("Or in a shell:")
                    st.code(state.command, language=None, wrap_lines=True)


def _follow(fetch: Fetch) -> None:
    def view() -> None:
        if fetch.fault:
            st.error(look.plain(fetch.fault))
        else:
            st.status(look.plain(fetch.said[-1] if fetch.said else "Starting."), state="running" if fetch.is_live else "complete")
        if was_live and not fetch.is_live:
            st.rerun()

    was_live = fetch.is_live
    st.fragment(view, run_every=1.0 if was_live else None)()
