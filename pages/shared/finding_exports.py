"""Findings as files, from a page: each is made when it is asked for, on a server one at a time."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from backend.hosting.exposure import is_hosted
from backend.hosting.files import Workshop, made_apart
from backend.reports import export, store
from backend.reports.records import Finding
from pages.shared.service import owner
from pages.shared.state import home_address


def offer(found: Sequence[Finding], *, key: str) -> None:
    """A menu of files of some findings, of which the titles are enough here."""
    with st.popover("Export", icon=":material/download:"):
        st.caption("Files that open anywhere, without PersonaScope and without a network.")
        if is_hosted():
            st.caption("They are made one at a time here. Where one fails, others are in line: try again in a moment.")
        keys = [finding.key for finding in found]
        for form, about in export.FORMATS.items():
            name, kind = export.name_of([export.Kept(finding) for finding in found], form)
            st.download_button(about.title, _maker(keys, form, suffix=Path(name).suffix), name, kind, key=f"{key}_{form}", type="tertiary", on_click="ignore")


@st.cache_resource(show_spinner=False)
def _workshop() -> Workshop:
    """One for all sessions; a visitor of a hosted server has one file at work and one waiting."""
    return Workshop(2) if is_hosted() else Workshop()


def _maker(keys: Sequence[str], form: export.Format, *, suffix: str) -> Callable[[], bytes]:
    """Runs in a thread of the server, so what it needs of this session is taken along; of the findings that is their keys, because each tab holds one of these."""
    workshop, visitor, address = _workshop(), owner(), home_address()

    def make() -> bytes:
        content = [store.load(key) for key in keys]  # answers are kept with a finding and never change alone
        what = hashlib.sha256(repr((form, address, content)).encode("utf-8", "surrogatepass")).hexdigest()
        command = ["findings", "export", *keys, "--format", form, *([f"--address={address}"] if address else [])]
        return workshop.make(what, lambda: made_apart(command, suffix=suffix), owner=visitor)

    return make
