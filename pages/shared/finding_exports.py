"""Findings as files, from a page: each is made when it is asked for."""

from collections.abc import Callable, Sequence

import streamlit as st

from backend.errors import BackendError
from backend.reports import export
from pages.shared import look
from pages.shared.state import home_address


def offer(keys: Sequence[str], *, key: str) -> None:
    """A menu of files of some findings."""
    with st.popover("Export", icon=":material/download:"):
        st.caption("Files that open anywhere, without PersonaScope and without a network.")
        try:
            kept = export.load(keys)
            for form, about in export.FORMATS.items():
                _button(kept, form, about.title, key=f"{key}_{form}")
        except BackendError as fault:
            st.error(look.plain(str(fault)))


def _button(kept: Sequence[export.Kept], form: export.Format, title: str, *, key: str) -> None:
    name, kind = export.name_of(kept, form)
    st.download_button(title, _maker(kept, form, home_address()), name, kind, key=key, type="tertiary", on_click="ignore")


def _maker(kept: Sequence[export.Kept], form: export.Format, address: str) -> Callable[[], bytes]:
    return lambda: export.download(kept, form, address=address)
