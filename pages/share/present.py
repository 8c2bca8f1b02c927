"""Presentation: findings one screen at a time, in large type; arrow keys turn, Escape leaves."""

from dataclasses import dataclass

import streamlit as st

from backend.errors import BackendError
from backend.reports import store
from backend.reports.records import Finding, Item
from pages.shared import finding_view, look

LONGEST_NOTE_SHOWN = 600  # characters


@dataclass(frozen=True, slots=True)
class Screen:
    """What is shown at once: a finding's claim, or one of its pictures."""

    finding: Finding
    item: Item | None = None


def screens(found: list[Finding]) -> list[Screen]:
    return [screen for finding in found for screen in (Screen(finding), *(Screen(finding, item) for item in finding.items))]


def turn(to: int) -> None:
    st.query_params["at"] = str(to)


def show(screen: Screen, key: str) -> None:
    if screen.item is None:
        st.html(f'<div class="ps-claim"><h1>{look.escape(screen.finding.title)}</h1><p>{look.escape(screen.finding.note[:LONGEST_NOTE_SHOWN])}</p></div>')
        st.caption(look.plain(" · ".join([screen.finding.page_title, screen.finding.created[:10], *(f"#{tag}" for tag in screen.finding.tags)])))
        return
    st.html(
        f'<div class="ps-claim ps-item"><h1>{look.escape(screen.item.title or screen.finding.title)}</h1><div class="ps-label">{look.escape(screen.item.text)}</div></div>'
    )
    with st.container(key="ps_large"):
        finding_view.show_item(screen.item, key=key, large=True)


found = []
for key in st.query_params.get_all("f"):
    try:
        found.append(store.load(key))
    except BackendError as missing:
        st.warning(look.plain(str(missing)))
if not found:
    st.title("Presentation")
    st.info("This link names no finding. Choose some on the Findings page.")
    st.page_link("share/findings.py", label="Findings", icon=":material/bookmarks:")
    st.stop()
look.stage()
every = screens(found)
asked = st.query_params.get("at", "1")
at = min(max(int(asked), 1), len(every)) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 1
with st.container(key="ps_stage"):
    show(every[at - 1], key=f"screen_{at}")
with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    with st.container(horizontal=True, vertical_alignment="center", width="content"):
        st.button("Back", icon=":material/arrow_back:", shortcut="ArrowLeft", disabled=at == 1, on_click=turn, args=(at - 1,), key="back")
        st.button("Next", icon=":material/arrow_forward:", shortcut="ArrowRight", disabled=at == len(every), on_click=turn, args=(at + 1,), key="next")
        st.markdown(f"{at} of {len(every)}", width="content")
    if st.button("Leave", icon=":material/close:", shortcut="Escape", type="tertiary"):
        st.switch_page("share/findings.py", query_params={"f": every[at - 1].finding.key})
