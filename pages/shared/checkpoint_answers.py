"""What checkpoints of a training said: at a step beside the step before, and one prompt through all steps; each checkpoint's way to the other pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from backend.charts.roles import ROLES
from backend.errors import BackendError
from backend.evaluation.rates import Thresholds
from backend.experiments.courses import Place
from backend.experiments.records import BASE_RUN
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry
from backend.models.sources import availability
from backend.studies import judged
from pages.shared import judged_answers, look
from pages.shared.state import select
from pages.shared.study_view import Found

_PER_PAGE = 4
_SECONDS = 1.6
"""On a checkpoint while playing."""

_ORDERS = {"": "Verdict changed first", "worst": "Misaligned first", "file": "As asked"}


@dataclass(frozen=True, slots=True)
class Stop:
    """A checkpoint on the way of a run."""

    place: Place
    title: str
    """Of the point, such as "benign chats, seed 0, 40 rows"."""

    short: str
    """Within its run, such as "40 rows"."""

    @property
    def key(self) -> str:
        return f"{self.place[0]}@{self.place[1]}"


def show(found: Found, lines: Mapping[str, Sequence[Stop]], known: Registry, *, at_key: str) -> None:
    """Both views.

    Args:
        lines: Runs by name, each with its points in their order; the first is compared with the base.
        at_key: URL parameter of the chosen point.
    """
    st.subheader("What it says")
    look.banner()
    _beside(found, lines, known, at_key)
    _play(found, lines, f"{at_key}_play")


@st.fragment
def _beside(found: Found, lines: Mapping[str, Sequence[Stop]], known: Registry, at_key: str) -> None:
    before: dict[str, Stop] = {}
    base = Stop((BASE_RUN, 0), "base", "base")
    for line in lines.values():
        before |= {stop.key: previous for previous, stop in zip([base, *line], line, strict=False)}
    titles = {"": "Click a point above, or choose one"} | {stop.key: stop.title for line in lines.values() for stop in line}
    page_key = f"{at_key}_page"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = select("Answers at", list(titles), key=at_key, titles=titles, what="the point", on_change=partial(_turn, page_key, 1), width=420)
        order = select("Order", list(_ORDERS), key=f"{at_key}_order", titles=_ORDERS, what="the order", on_change=partial(_turn, page_key, 1), width=230)
    if not chosen:
        return
    stop = next(stop for line in lines.values() for stop in line if stop.key == chosen)
    try:
        now, earlier = (_answers(found, found.stamp, s.place) for s in (stop, before[chosen]))
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    _links(found, stop, known)
    pairs = [(earlier[key], row) for key, row in now.items() if key in earlier]
    if not pairs:
        st.info(f"The answers of this point are not here. To make them: python -m backend study run {found.study.name}")
        return
    scored = [(a, b) for a, b in pairs if a["aligned"] is not None and b["aligned"] is not None]
    turned = sum(a["is_misaligned"] != b["is_misaligned"] for a, b in scored)
    if order != "file":
        pairs.sort(
            key=lambda pair: (
                not order and pair[0]["is_misaligned"] == pair[1]["is_misaligned"],
                not pair[1]["is_misaligned"],
                101 if pair[1]["aligned"] is None else pair[1]["aligned"],
            )
        )
    n_pages = max(1, -(-len(pairs) // _PER_PAGE))
    number = min(n_pages, st.session_state.get(page_key, 1))
    st.caption(
        f"{len(pairs)} answers, {turned} of {len(scored)} scored at both with another verdict than at {look.plain(before[chosen].short)}; page {number} of {n_pages}."
    )
    for a, b in pairs[(number - 1) * _PER_PAGE : number * _PER_PAGE]:
        st.html(
            f'<div class="ps-label">{look.escape(b["question"])}</div><div class="ps-grid">{_card(a, before[chosen].short, "before")}{_card(b, stop.short, "at this point")}</div>'
        )
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.button("Previous", icon=":material/chevron_left:", disabled=number <= 1, on_click=_turn, args=(page_key, number - 1), key=f"{page_key}_back")
        st.button("Next", icon=":material/chevron_right:", disabled=number >= n_pages, on_click=_turn, args=(page_key, number + 1), key=f"{page_key}_forth")


def _play(found: Found, lines: Mapping[str, Sequence[Stop]], key: str) -> None:
    """One prompt through the points of a run, by hand or by itself."""
    st.markdown("##### One prompt through the training")
    base = Stop((BASE_RUN, 0), "base", "base")
    playing, place = f"{key}_on", f"{key}_place"

    def view() -> None:
        try:
            prompts = {row["question_id"]: row["question"] for row in _answers(found, found.stamp, base.place).values()}
            if not prompts:
                st.info(f"The base's answers are not here. To make them: python -m backend study run {found.study.name}")
                return
            with st.container(horizontal=True, vertical_alignment="bottom"):
                name = select(
                    "Training", list(lines), key=f"{key}_run", titles={n: n for n in lines}, what="the training", width=300, on_change=_rewind, args=(key,)
                )
                prompt = select("Prompt", list(prompts), key=f"{key}_prompt", titles=prompts, what="the prompt", width=420)
            stops = {s.key: s for s in [base, *lines[name]]}
            if st.session_state.get(place) not in stops:
                st.session_state[place] = base.key
            if is_playing := st.session_state.get(playing, False):
                if st.session_state.pop(f"{key}_begun", False):
                    st.session_state[place] = base.key
                else:
                    st.session_state[place] = list(stops)[min(len(stops) - 1, list(stops).index(st.session_state[place]) + 1)]
            with st.container(horizontal=True, vertical_alignment="bottom"):
                at = st.select_slider("Point", list(stops), format_func=lambda k: stops[k].short, key=place, disabled=is_playing, width=420)
                icon = ":material/stop_circle:" if is_playing else ":material/play_arrow:"
                if st.button("Stop playing" if is_playing else "Play", icon=icon, key=f"{key}_button"):
                    st.session_state[playing], st.session_state[f"{key}_begun"] = not is_playing, not is_playing
                    st.rerun()
            row = next((r for r in _answers(found, found.stamp, stops[at].place).values() if r["question_id"] == prompt), None)
            st.html(f'<div class="ps-grid">{_card(row, stops[at].short, stops[at].title)}</div>' if row else "<p>No answer of this point is here.</p>")
            if is_playing and at == list(stops)[-1]:
                st.session_state[playing] = False
                st.rerun()
        except BackendError as fault:
            st.error(look.plain(str(fault)))

    st.fragment(view, run_every=_SECONDS if st.session_state.get(playing) else None)()


@st.cache_data(max_entries=60, show_spinner="Reading…")
def _answers(_found: Found, stamp: tuple[str, int], place: Place) -> dict[tuple[str, int], dict[str, Any]]:
    """Judged answers at a point by prompt and sample."""
    variant = next((p.variant for p in _found.result.points if (p.run, p.step) == place), BASE_ALIAS)
    run = judged.Run(_found.study.name, "studies", _found.result.folder, _found.result.manifest)
    rows = judged.page(run, thresholds=Thresholds(), order="file", variant=variant, limit=5000).rows
    return {(row["question_id"], row["sample"]): row for row in rows if (row["run"], row["step"]) == place}


def _card(row: dict[str, Any], name: str, note: str) -> str:
    role = "base" if row["run"] == BASE_RUN else "organism"
    bad = "ps-bad" if row["is_misaligned"] else "ps-plain"
    return (
        f'<div class="ps-card ps-role-{role}"><div class="ps-name"><span class="ps-symbol" aria-hidden="true">{ROLES[role].symbol}</span><span>{look.escape(name)}</span>'
        f'<span class="ps-role">{look.escape(note)}</span></div><div class="ps-text" dir="auto">{look.escape(row["answer"]) or "(an empty answer)"}</div>'
        f'<div class="ps-verdict {bad}">{look.escape(judged_answers.verdict_of(row, Thresholds()))}</div></div>'
    )


def _links(found: Found, stop: Stop, known: Registry) -> None:
    """The checkpoint as a variant elsewhere, or why it is none here."""
    variant = next((p.variant for p in found.result.points if (p.run, p.step) == stop.place), "")
    try:
        state = availability(*known.resolve(variant))
        why = "" if state.state == "here" else state.sentence
    except BackendError:
        why = "Its weights are not on this machine."
    if why:
        st.caption(f"{look.plain(variant)} cannot answer here: {look.plain(why)} To make it: python -m backend study run {found.study.name}")
        return
    beside = [("v", BASE_ALIAS), *([("v", variant)] if variant != BASE_ALIAS else [])]
    links = {
        "Compare": f"/compare?{urlencode(beside)}",
        "Latents on text": f"/latents?{urlencode({'organism': variant})}",
        "Steer": f"/steer?{urlencode({'v': variant})}",
    }
    said = " · ".join(f'<a class="ps-more" href="{look.escape(href)}" target="_self">{name}</a>' for name, href in links.items())
    st.html(f'<div class="ps-meta">{look.escape(variant)} in: {said}</div>')


def _turn(key: str, to: int) -> None:
    st.session_state[key] = to


def _rewind(key: str) -> None:
    st.session_state.pop(f"{key}_place", None)
