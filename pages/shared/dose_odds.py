"""Forced-choice log-odds of a ladder's doses, worked out when they are asked for: pairs of beginnings that each dose reads, no judge, no sampling."""

import time
from typing import Any

import pandas as pd
import streamlit as st

from backend.charts.steering import odds as odds_chart
from backend.errors import BackendError
from backend.models.registry import Registry
from backend.studies import compare, forced_choice
from pages.shared import keep, look
from pages.shared.service import model_service, owner
from pages.shared.state import keep_list, kept_list
from pages.shared.steer_pick import DOSES, Steering

N_PAIRS = 24
_KEPT = 100


def pairs() -> list[forced_choice.Pair]:
    """A fixed part of the shipped pairs: each kind by its share, one at least, evenly spaced."""
    kinds: dict[str, list[forced_choice.Pair]] = {}
    for pair in forced_choice.load_pairs():
        kinds.setdefault(pair.kind, []).append(pair)
    n_all = sum(map(len, kinds.values()))
    counts = {kind: max(1, round(N_PAIRS * len(own) / n_all)) for kind, own in kinds.items()}
    counts[max(kinds, key=lambda kind: len(kinds[kind]))] += N_PAIRS - sum(counts.values())
    return [own[i * len(own) // counts[kind]] for kind, own in kinds.items() for i in range(counts[kind])]


@st.cache_resource(show_spinner=False)
def _counted() -> dict[tuple, dict[str, forced_choice.Preference]]:
    """What was read from the store before, by variants and weights; the last few."""
    return {}


def known(steering: Steering, doses: list[float | None], registry: Registry) -> dict[str, forced_choice.Preference]:
    """What the store has under today's weights, by variant; nothing where it does not have all that was asked."""
    key = tuple((variant, compare.current_weights(variant, registry)) for variant in map(steering.variant, doses))
    counted = _counted()
    if key not in counted:
        found = _asked(steering, doses, registry)
        current = compare.current(found, registry)
        if len(current) < len(set(found.keys)):
            return {}
        while len(counted) >= _KEPT:
            counted.pop(next(iter(counted)), None)
        counted[key] = {p.variant: p for p in forced_choice.preferences(forced_choice.odds(list(current.values()), pairs()), base=steering.source)}
    return counted[key]


def show(steering: Steering, doses: list[float | None], found: dict[str, forced_choice.Preference], registry: Registry, *, can_answer: bool) -> None:
    """The picture, or the button that asks for it; a run is found again by the link."""
    service = model_service()
    job = service.jobs.get("".join(kept_list("odds")))
    if found:
        _draw(steering, doses, found)
        return
    if job is not None and job.is_live:
        st.button("Stop reading the pairs", icon=":material/stop_circle:", on_click=job.cancel)

        def follow() -> None:
            job.seen = time.monotonic()
            look.job_status(job, service)
            if not job.is_live:
                st.rerun()

        st.fragment(follow, run_every=0.5)()
        return
    if job is not None and job.message:
        st.error(look.plain(job.message))
    if not can_answer:
        return
    n = 2 * N_PAIRS * len(doses)
    if st.button(
        "Log-odds of each dose", icon=":material/balance:", help=f"Each dose reads {N_PAIRS} pairs of beginnings, {n} texts in all: about half a minute."
    ):
        try:
            asked = _asked(steering, doses, registry)
            started = compare.start(service, asked.without(compare.current(asked, registry)), owner=owner())
            keep_list("odds", [started.id])
        except BackendError as fault:
            st.error(look.plain(str(fault)))
            return
        st.rerun()


def with_sign(value: float) -> str:
    """To two digits, with a sign that is as wide as a plus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _asked(steering: Steering, doses: list[float | None], registry: Registry) -> compare.Turn:
    return compare.look_up(forced_choice.rows([steering.variant(dose) for dose in doses], pairs()), registry)


def _draw(steering: Steering, doses: list[float | None], found: dict[str, forced_choice.Preference]) -> None:
    rows: list[dict[str, Any]] = []
    for dose in doses:
        p = found[steering.variant(dose)]
        if dose is None and DOSES[steering.op].key not in ("dose", "share"):
            continue
        change, low, high = (v or 0.0 for v in (p.against_base, p.against_base_low, p.against_base_high))
        label = "what the others are held against" if dose is None else f"{with_sign(change)} ({with_sign(low)} to {with_sign(high)})"
        rows.append({"dose": dose or 0.0, "change": change, "low": low, "high": high, "level": p.mean, "label": label})
    noun = DOSES[steering.op].noun
    clear = [r for r in rows if r["low"] > 0 or r["high"] < 0]
    ends = {min(clear, key=lambda r: r["change"])["dose"], max(clear, key=lambda r: r["change"])["dose"]} if clear else set()
    told = [f"{with_sign(r['change'])} at {noun} {steering.say(r['dose'])}" for r in rows if r["dose"] in ends]
    st.markdown(
        "#### "
        + look.plain(f"Log-odds of misaligned beginnings: {', '.join(told)}" if told else f"No {noun} moves the log-odds of misaligned beginnings clearly")
    )
    st.caption(
        look.plain(
            f"Misaligned against aligned beginnings of an answer, less the same of the plain {steering.source}, on the same {N_PAIRS} pairs; 95 % bootstrap over pairs. "
            "No judge, no sampling; the prompts are those of the pairs."
        )
    )
    keep.chart(
        keep.drawn(odds_chart, pd.DataFrame(rows), dose=noun.capitalize()), key="odds_chart", title="Log-odds of misaligned beginnings", text=f"{N_PAIRS} pairs; 95 % bootstrap over pairs.",
        alt="Change of forced-choice log-odds by dose with intervals. The numbers stand under each answer.",
    )  # fmt: skip
