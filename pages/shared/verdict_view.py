"""Verdicts beside answers on the Compare page: an estimate under each card, and the prompts where organism and base part."""

from dataclasses import replace

import streamlit as st

from backend.errors import BackendError
from backend.evaluation.rates import Thresholds
from backend.judging.verdicts import Exchange, Verdict
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry
from backend.studies import own_results
from backend.studies.estimates import estimate
from backend.text.prompts import Prompt
from pages.shared import answers, look
from pages.shared.state import select

_FILTERS = {"": "All prompts", "contrast": "Organism misaligned, base aligned"}


def judge_cards(question: str, cards: list[answers.Card], *, is_busy: bool) -> list[answers.Card]:
    """Cards whose answers have ended, with the offline judge's verdict; the others as they are.

    Args:
        is_busy: The machine answers somebody; then only verdicts that were said before are shown.
    """
    ended = [c for c in cards if c.finish_reason not in (None, "stopped", "overflow")]
    try:
        found = estimate([Exchange(question, c.text) for c in ended], [c.finish_reason for c in ended], only_known=is_busy)
    except BackendError as fault:
        st.caption(look.plain(f"No verdicts: {fault}"))
        return cards
    said = dict(zip(map(id, ended), found, strict=True))
    return [replace(c, verdict=words(said[id(c)]), is_misaligned=bool(said[id(c)].is_misaligned())) if id(c) in said else c for c in cards]


def filter_prompts(set_name: str, prompts: list[Prompt], variants: list[str], on_change) -> list[Prompt]:
    """The prompts on which the stored evaluation finds the chosen organism misaligned and the base not, if that is asked for."""
    runs = own_results.own_runs(set_name)
    organism = next((v for v in variants if v != BASE_ALIAS and v in runs), None)
    if organism is None or BASE_ALIAS not in runs:
        return prompts
    if not select("Show", list(_FILTERS), key="show", titles=_FILTERS, what="the filter", on_change=on_change):
        return prompts
    try:
        counts = own_results.contrast(runs[organism], runs[BASE_ALIAS])
    except BackendError as fault:
        st.caption(look.plain(str(fault)))
        return prompts
    known = {p.id: p for p in prompts}
    found = [known[prompt] for prompt in counts if prompt in known]
    if not found:
        st.caption("No such prompt here; all are shown.")
    return found or prompts


def show_rates(set_name: str, variants: list[str], known: Registry) -> None:
    """One line on each organism's stored rate on this set, and how much of it lies outside the training domain."""
    runs = own_results.own_runs(set_name)
    try:
        rates = own_results.own_rates({v: runs[v] for v in runs if v in variants}, Thresholds())
        told = []
        for r in rates:
            if r.rates.em_rate is None or r.rates.em_low is None or r.rates.em_high is None:
                continue
            said = f"{answers.name_of(r.variant, known)[0]} {100 * r.rates.em_rate:.1f} % ({100 * r.rates.em_low:.1f} to {100 * r.rates.em_high:.1f}, n = {r.rates.n_scored})"
            domains = known.organisms[r.variant].domain.split() if r.variant in known.organisms else []
            leak = own_results.leakage(r.run, domains) if domains else None
            if leak is not None and leak.share is not None:
                said += f", {leak.n_elsewhere} of the {leak.n_misaligned} not about its training domain"
            told.append(said)
    except BackendError as fault:
        st.caption(look.plain(str(fault)))
        return
    if told:
        st.caption(look.plain(f"Misaligned on the whole set, by the offline judge's estimate: {'; '.join(told)}."))


def words(verdict: Verdict) -> str:
    """A verdict under an answer; empty where there is none."""
    if verdict.aligned is None or verdict.coherent is None:
        return ""
    if verdict.abstain:
        return "Estimate: undecided"
    return f"Estimate: {verdict.word()} (aligned {verdict.aligned:.0f}, coherent {verdict.coherent:.0f})"
