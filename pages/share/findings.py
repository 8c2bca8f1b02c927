"""Findings: what did we find? A list, one of them, or two or three beside each other."""

from functools import partial

import streamlit as st

from backend.errors import BackendError
from backend.hosting.exposure import is_hosted
from backend.reports import numbers, store
from backend.reports.records import LONGEST_NOTE, LONGEST_TITLE, Finding
from pages.shared import finding_exports, finding_view, look, reproducing
from pages.shared.state import keep_list, kept_list, link

MOST_COMPARED = 3
PAGES = {
    "": "home/overview.py", "compare": "explore/compare.py", "latents": "explore/latents.py", "latent": "explore/latent.py",
    "diffing": "explore/diffing.py", "steer": "explore/steer.py", "scaling": "curves/scaling.py", "realignment": "curves/realignment.py",
    "dynamics": "curves/dynamics.py", "mix": "curves/mix.py",
}  # fmt: skip


def show_list(found: list[Finding]) -> None:
    """All findings in their order, with search and tags."""
    st.title("Findings")
    st.markdown("What did we find, as one link, one HTML file, one set of slides?")
    look.banner()
    if not found:
        st.info("Nothing is kept yet. Open any page and choose *Save as finding* at the top of the sidebar.")
        return
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    words = left.text_input("Search", key="q", bind="query-params", max_chars=100, placeholder="Words of title, note or tags").lower().split()
    tags = right.multiselect("Tags", sorted({tag for f in found for tag in f.tags}), key="tags", bind="query-params")
    shown = [f for f in found if set(tags) <= set(f.tags) and all(w in " ".join((f.title, f.note, *f.tags, f.page_title)).lower() for w in words)]
    bar = st.container(horizontal=True, vertical_alignment="center")
    for finding in shown:
        show_row(finding)
    if not shown:
        st.info("No finding has these words and tags. Take fewer.")
    picked = [f.key for f in shown if st.session_state.get(f"pick_{f.key}")]
    with bar:
        chosen = [f for f in shown if f.key in picked] or shown
        st.markdown(f"**{len(picked)} chosen**" if picked else f"{len(shown)} {'finding' if len(shown) == 1 else 'findings'}", width="content")
        can = 2 <= len(picked) <= MOST_COMPARED
        st.button("Compare", icon=":material/compare:", disabled=not can, help=f"Choose 2 or {MOST_COMPARED} below.", on_click=open_findings, args=(picked,))
        if chosen:
            st.page_link("share/present.py", label="Present", icon=":material/slideshow:", query_params=[("f", f.key) for f in chosen])
            finding_exports.offer(chosen, key="list")


def show_row(finding: Finding) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.checkbox(f"Choose {finding.title}", key=f"pick_{finding.key}", label_visibility="collapsed")
        with st.container(gap="small"):
            st.button(f"**{look.plain(finding.title)}**", key=f"open_{finding.key}", type="tertiary", wrap=True, on_click=open_findings, args=([finding.key],))
            if finding.note:
                st.markdown(look.plain(finding.note[:220] + (" …" if len(finding.note) > 220 else "")))
            st.caption(
                look.plain(
                    " · ".join(
                        [finding.page_title, finding.created[:10], "yours" if store.is_own(finding.key) else "shipped", *(f"#{tag}" for tag in finding.tags)]
                    )
                )
            )
        if is_hosted():
            return
        st.button("Earlier", key=f"move_up_{finding.key}", icon=":material/arrow_upward:", type="tertiary", on_click=partial(move, finding.key, -1))
        st.button("Later", key=f"move_down_{finding.key}", icon=":material/arrow_downward:", type="tertiary", on_click=partial(move, finding.key, 1))


def open_findings(keys: list[str]) -> None:
    """None shows the list."""
    keep_list("f", keys)


def move(key: str, by: int) -> None:
    try:
        store.move(key, by)
    except BackendError as fault:
        st.session_state["finding_fault"] = str(fault)


def show_one(finding: Finding) -> None:
    """A finding as it was kept."""
    st.title(look.plain(finding.title))
    st.caption(look.plain(" · ".join([f"Kept on {finding.page_title}, {finding.created[:10]}", *([f"said anew {finding.edited[:10]}"] if finding.edited else []), *(f"#{tag}" for tag in finding.tags)])))  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("All findings", icon=":material/arrow_back:", type="tertiary", on_click=open_findings, args=([],))
        if finding.page in PAGES:
            st.page_link(PAGES[finding.page], label="Open the page", icon=":material/open_in_new:", query_params=list(finding.query))
        st.page_link("share/present.py", label="Present", icon=":material/slideshow:", query_params={"f": finding.key})
        finding_exports.offer([finding], key="one")
        if not is_hosted() and st.button("Edit", icon=":material/edit:"):
            edit(finding)
        if store.is_own(finding.key) and st.button("Remove", icon=":material/delete:"):
            ask_remove(finding)
        with st.popover("Link", icon=":material/link:"):
            st.caption("Opens this finding, for whoever can reach this server.")
            st.code(link([("f", finding.key)]), language=None, wrap_lines=True)
    if finding.note:
        st.text(finding.note)
    look.banner()
    finding_view.show_today(finding)
    finding_view.show(finding, key=finding.key)
    finding_view.answers_behind(finding, key=finding.key)
    st.subheader("Where it came from")
    reproducing.offer(finding)
    with st.expander("Models, prompts, judge, versions and commands"):
        finding_view.show_sources(finding)


@st.dialog("Edit the finding")
def edit(finding: Finding) -> None:
    """Its words, and what is kept with it under which titles; numbers stay."""
    title = st.text_input("Title", value=finding.title, max_chars=LONGEST_TITLE)
    note = st.text_area("Note", value=finding.note, max_chars=LONGEST_NOTE)
    tags = st.multiselect(
        "Tags", sorted({*finding.tags, *(t for f in store.all_findings()[0] for t in f.tags)}), default=list(finding.tags), accept_new_options=True
    )
    titles = edit_items(finding)
    if st.button("Save", type="primary"):
        try:
            store.change(finding.key, lambda kept: kept.with_items(titles).with_words(title=title, note=note, tags=tags, edited=store.now()))
        except BackendError as fault:
            st.error(look.plain(str(fault)))
            return
        st.rerun()


def edit_items(finding: Finding) -> dict[int, str]:
    """Places of the items that stay, with their titles: the claims of presentation and slides."""
    places = range(len(finding.items))
    stay = st.multiselect("What stays on it", places, default=list(places), format_func=lambda n: f"{n + 1}. {finding.items[n].title or finding.items[n].kind}")
    with st.expander("Titles, as a presentation shows them"):
        return {n: st.text_input(f"Title of {n + 1}", value=finding.items[n].title, key=f"title_{finding.key}_{n}") for n in sorted(stay)}


@st.dialog("Remove the finding")
def ask_remove(finding: Finding) -> None:
    st.markdown(f"**{look.plain(finding.title)}** and the answers kept with it are deleted. The results that it came from stay.")
    if st.button("Remove", type="primary"):
        try:
            store.remove(finding.key)
        except BackendError as fault:
            st.error(look.plain(str(fault)))
            return
        keep_list("f", [])
        st.rerun()


def show_beside(found: list[Finding]) -> None:
    """Findings beside each other, then their numbers held against each other."""
    st.title("Findings beside each other")
    st.button("All findings", icon=":material/arrow_back:", type="tertiary", on_click=open_findings, args=([],))
    look.banner()
    for column, finding in zip(st.columns(len(found), gap="large"), found, strict=True):
        with column:
            st.button(f"**{look.plain(finding.title)}**", key=f"open_{finding.key}", type="tertiary", wrap=True, on_click=open_findings, args=([finding.key],))
            st.caption(look.plain(f"{finding.page_title}, {finding.created[:10]}"))
            if finding.note:
                st.text(finding.note)
            finding_view.show(finding, key=finding.key)
    st.subheader("Number by number")
    first, *others = found
    n_pairs = 0
    for other in others:
        for item, twin in numbers.paired(first.items, other.items):
            n_pairs += 1
            finding_view.show_held(numbers.hold_items(item, twin), titles=(first.title, other.title))
    if not n_pairs:
        st.info("These findings have no tables of the same columns, so no number stands against another.")


if fault := st.session_state.pop("finding_fault", ""):
    st.error(look.plain(fault))
asked = list(dict.fromkeys(kept_list("f")))
opened: list[Finding] = []
if len(asked) > MOST_COMPARED:
    st.warning(
        f"The link names {len(asked)} findings. Beside each other are shown at most {MOST_COMPARED}, here the first ones; present or export takes them all."
    )
for one in asked[:MOST_COMPARED]:
    try:
        opened.append(store.load(one))
    except BackendError as missing:
        st.warning(look.plain(str(missing)))
if len(opened) > 1:
    show_beside(opened)
elif opened:
    show_one(opened[0])
else:
    every, faults = store.all_findings()
    show_list(every)
    for told in faults:
        st.warning(look.plain(told))
