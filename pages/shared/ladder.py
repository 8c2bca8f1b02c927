"""The ladder of doses: answers beside each other, each with its dose, verdict, repetition and perplexity, and its flag past the incoherence limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from backend.charts.roles import ROLES
from backend.errors import BackendError
from backend.evaluation.rates import COHERENT_CUTOFF
from backend.evaluation.repetition import repetition
from backend.generation.jobs import RowProgress
from backend.generation.records import FinishReason, Rollout, Row
from backend.judging.verdicts import Exchange, Verdict
from backend.models.fingerprint import remembered_fingerprint
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.saes import records as saes
from backend.steering import snippet
from backend.studies.compare import Turn
from backend.studies.estimates import estimate
from backend.studies.forced_choice import Preference
from backend.text.spans import tokens_of_ids
from pages.shared import answers, text_pick, verdict_view
from pages.shared.dose_odds import with_sign
from pages.shared.look import escape, plain
from pages.shared.state import select
from pages.shared.steer_pick import DOSES, Steering

_COLUMNS = {4: (2, 4), 6: (3, 3), 7: (4, 4), 8: (4, 4), 9: (3, 5), 10: (3, 5)}  # rungs to columns of a middling and of a wide screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One dose and what was said at it."""

    dose: float | None
    """None: the plain source."""

    row: Row
    is_free: bool = False
    text: str = ""
    answer_ids: tuple[int, ...] = ()
    n_prompt: int = 0
    finish_reason: FinishReason | None = None
    is_asked: bool = False
    """Stored, or being answered."""

    begun: bool = True
    tokens_per_second: float = 0.0
    base_logprob: float | None = None
    rollout: str = ""
    """Key in the store; empty until it is there."""

    verdict: Verdict | None = None
    flag: str = ""
    """Why it is past the incoherence limit; empty where it is not."""

    log_odds: str = ""

    @property
    def is_whole(self) -> bool:
        return self.finish_reason not in (None, "stopped", "overflow")


def rungs(turn: Turn, doses: Sequence[float | None], free: float | None, progress: dict[str, RowProgress], *, live: bool) -> list[Rung]:
    """The rows of a turn, in the order of ``doses``, as they stand now."""
    found = []
    for dose, row, key in zip(doses, turn.rows, turn.keys, strict=True):
        rung = Rung(dose=dose, row=row, is_free=dose is not None and dose == free)
        if key in progress and (live or key not in turn.stored):
            rung = _with_progress(rung, progress[key])
        elif key in turn.stored:
            rung = _with_rollout(rung, turn.stored[key].rollout)
        found.append(rung)
    return found


def _with_progress(rung: Rung, p: RowProgress) -> Rung:
    return replace(
        rung, is_asked=True, text=p.text, answer_ids=tuple(p.answer_ids), n_prompt=len(p.prompt_ids), finish_reason=p.finish_reason, begun=p.started is not None,
        tokens_per_second=p.tokens_per_second, base_logprob=p.rollout.base_logprob if p.rollout else None,
    )  # fmt: skip


def _with_rollout(rung: Rung, r: Rollout) -> Rung:
    return replace(
        rung, is_asked=True, text=r.answer, answer_ids=r.answer_ids, n_prompt=len(r.prompt_ids), finish_reason=r.finish_reason, tokens_per_second=r.tokens_per_second,
        base_logprob=r.base_logprob, rollout=r.key,
    )  # fmt: skip


def with_facts(found: Sequence[Rung], past: dict[float, str], odds: dict[str, Preference]) -> list[Rung]:
    """Rungs with what stored sweeps and the forced choice say of their doses.

    Args:
        past: Dose to the sweep that found it past the incoherence limit, or an empty text.
        odds: By variant.
    """
    flags = {dose: f"Past the limit (sweep {name})" for dose, name in past.items() if name}
    said = {variant: f"log-odds {with_sign(p.mean)}" for variant, p in odds.items()}
    return [replace(rung, flag=flags.get(rung.dose, "") if rung.dose else "", log_odds=said.get(rung.row.variant, "")) for rung in found]


def judged(found: list[Rung], question: str, *, is_busy: bool) -> list[Rung]:
    """Rungs whose answers have ended, with the offline judge's verdict; what it calls incoherent is flagged, unless the
    baseline is so too.

    Args:
        is_busy: The machine answers somebody; then only verdicts that were said before are shown.
    """
    whole = [rung for rung in found if rung.is_whole]
    try:
        estimates = estimate([Exchange(question, rung.text) for rung in whole], [rung.finish_reason for rung in whole], only_known=is_busy)
    except BackendError as fault:
        st.caption(plain(f"No verdicts: {fault}"))
        return found
    said = dict(zip(map(id, whole), estimates, strict=True))
    zero = next((verdict for rung in whole if rung.dose is None and (verdict := said[id(rung)])), Verdict())
    return [replace(rung, verdict=v, flag=rung.flag or _broken(rung, v, zero)) if (v := said.get(id(rung))) else rung for rung in found]


def _broken(rung: Rung, verdict: Verdict, zero: Verdict) -> str:
    """The limit is one of rates; a single answer can only be held against the one at dose 0."""
    if rung.dose is None or verdict.coherent is None or zero.coherent is None or not verdict.coherent <= COHERENT_CUTOFF < zero.coherent:
        return ""
    return "Incoherent, unlike the baseline"


def show(found: Sequence[Rung], steering: Steering, known: Registry) -> None:
    """The rungs beside each other, in rows that are even; on a phone under each other."""
    middling, wide = _COLUMNS.get(len(found), (min(3, len(found)), min(5, len(found))))
    sae = next((r.key for r in saes.load_saes()[0].values() if r.base == steering.base.key), "")
    cards = "".join(_card(rung, steering, known, sae) for rung in found)
    st.html(f'<div class="ps-ladder"><div class="ps-rungs" style="--ps-middling:{middling};--ps-wide:{wide}">{cards}</div></div>')


def kept_rows(found: Sequence[Rung], steering: Steering, question: str) -> pd.DataFrame:
    """The rungs as a finding keeps them."""
    return pd.DataFrame(
        [
            {
                "Variant": f"{steering.source}, {DOSES[steering.op].noun} {steering.say(rung.dose)}", "Prompt": question, "Answer": rung.text,
                "Verdict": verdict_view.words(rung.verdict) if rung.verdict else "", "Name": rung.row.variant, "Says": " · ".join(_measures(rung, False)), "Flag": rung.flag,
            }
            for rung in found
        ]
    )  # fmt: skip


def _card(rung: Rung, steering: Steering, known: Registry, sae: str) -> str:
    _, plain_role, _ = answers.name_of(steering.source, known)
    role = plain_role if rung.dose is None else "steered"
    live = rung.is_asked and rung.finish_reason is None
    note = "baseline, not steered" if rung.dose is None else "one more" if rung.is_free else ""
    name = f"{DOSES[steering.op].noun.capitalize()} {steering.say(rung.dose)}"
    verdict = verdict_view.words(rung.verdict) if rung.verdict else ""
    is_bad = bool(rung.verdict and rung.verdict.is_misaligned())
    measures, ends = _measures(rung, live)
    parts = [
        f'<div class="ps-name"><span class="ps-symbol" aria-hidden="true">{ROLES[role].symbol}</span><span>{escape(name)}</span>'
        f'<span class="ps-role">{escape(note)}</span></div>{_scale(rung.dose, steering)}{_body(rung, steering, live)}',
        f'<div class="ps-verdict{" ps-bad" if is_bad else ""}">{escape(verdict)}</div>' if verdict else "",
        f'<div class="ps-flag">\N{WARNING SIGN}\N{VARIATION SELECTOR-15} {escape(rung.flag)}</div>' if rung.flag else "",
        *(f'<div class="ps-meta">{escape(line)}</div>' for line in (measures, ends) if line),
    ]
    if sae and rung.rollout and rung.text:
        query = {"sae": sae, "rollout": rung.rollout} | ({} if rung.row.variant == BASE_ALIAS else {"organism": rung.row.variant})
        parts.append(f'<a class="ps-more" href="/latents?{escape(urlencode(query))}" target="_self">Latents on this answer</a>')
    past = " ps-past" if rung.flag else ""
    return f'<div class="ps-card ps-role-{role}{past}" data-dose="{"" if rung.dose is None else rung.dose}">{"".join(parts)}</div>'


def _scale(dose: float | None, steering: Steering) -> str:
    """Where the dose stands between the ends of the ladder, as a mark on a line."""
    doses = [d for d in steering.doses if d is not None] + [0.0, dose or 0.0]
    low, high = min(doses), max(doses)
    if dose is None and DOSES[steering.op].key not in ("dose", "share"):
        return '<div class="ps-dose" aria-hidden="true"></div>'
    return f'<div class="ps-dose" aria-hidden="true"><i style="left:{100 * ((dose or 0.0) - low) / (high - low):.1f}%"></i></div>'


def _body(rung: Rung, steering: Steering, live: bool) -> str:
    if rung.text or rung.finish_reason == "stop":
        text = _marked(rung, steering) if rung.text else "(an empty answer)"
        return f'<div class="ps-text{" ps-caret" if live else "" if rung.text else " ps-empty"}" dir="auto">{text}</div>'
    if not rung.is_asked:
        said = "Not answered yet."
    elif live:
        said = "Reading the prompt…" if rung.begun else "Waiting…"
    else:
        said = "No answer: the model's numbers were no longer finite." if rung.finish_reason == "overflow" else "Stopped before the first word."
    return f'<div class="ps-text ps-empty">{said}</div>'


def _marked(rung: Rung, steering: Steering) -> str:
    """The answer with its steered part marked, where that is a part."""
    tokens = steering.changes[0].tokens
    if rung.dose is None or tokens.where in ("all", "prompt"):
        return escape(rung.text)
    if tokens.where == "answer":
        return f'<mark class="ps-steered">{escape(rung.text)}</mark>'
    n = len(rung.answer_ids)
    steered = tokens.of(rung.n_prompt, rung.n_prompt + n, rung.n_prompt)
    if not steered or rung.finish_reason is None:
        return escape(rung.text)
    try:
        read = text_pick.tokenizer(steering.base, remembered_fingerprint(base_folder(steering.base)))
    except BackendError:  # an answer of the store, whose model is not here
        return escape(rung.text)
    pieces = tokens_of_ids(read, rung.answer_ids, ["special" if i in read.stop_ids else "content" for i in rung.answer_ids])
    start, end = pieces[steered.start - rung.n_prompt].start, pieces[steered.stop - rung.n_prompt - 1].end
    return f'{escape(rung.text[:start])}<mark class="ps-steered">{escape(rung.text[start:end])}</mark>{escape(rung.text[end:])}'


def say_tokens(steering: Steering) -> str:
    """Which tokens are steered, in one sentence."""
    said = {"all": "All tokens of prompt and answer are steered.", "prompt": "The prompt's tokens are steered, the answer's are not.",
            "answer": "The answer's tokens are steered (underlined), from the first one on; the prompt's are not."}  # fmt: skip
    tokens = steering.changes[0].tokens
    return said.get(tokens.where, f"Tokens {tokens.start} to {tokens.stop - 1} of prompt and answer together are steered; those in the answer are underlined.")


def _measures(rung: Rung, live: bool) -> tuple[str, str]:
    """How good the answer is, in numbers; and how it came."""
    if not rung.is_asked:
        return "", ""
    measures = []
    if rung.is_whole:
        if (repeated := repetition(rung.answer_ids)) is not None:
            measures.append(f"repeats {100 * repeated:.0f} %")
        if rung.base_logprob is not None and rung.answer_ids:
            measures.append(f"perplexity {_short(math.exp(min(50.0, -rung.base_logprob / len(rung.answer_ids))))}")
    if rung.log_odds:
        measures.append(rung.log_odds)
    ends = [f"{len(rung.answer_ids)} tokens"]
    if rung.tokens_per_second and (live or not rung.rollout):
        ends.append(f"{rung.tokens_per_second:.1f} tokens/s")
    if rung.finish_reason:
        ends.append(answers.ENDS[rung.finish_reason])
    return " · ".join(measures), " · ".join(ends)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else "over a million"


def show_python(found: Sequence[Rung], steering: Steering, known: Registry) -> None:
    """A rung as a program that runs by itself, worked out when it is opened."""
    box = st.expander("Copy as Python", icon=":material/code:", key="python", on_change="rerun")
    if not box.open:
        return
    with box:
        titles = {str(number): f"{DOSES[steering.op].noun.capitalize()} {steering.say(rung.dose)}" for number, rung in enumerate(found)}
        number = select("Which", list(titles)[::-1], key="rung", titles=titles, what="the rung", width=240)
        row = found[int(number)].row
        try:
            written = snippet.write(row.variant, row.messages, known, max_new_tokens=row.sampling.max_new_tokens)
        except BackendError as fault:
            st.error(plain(str(fault)))
            return
        sampled = (
            "" if row.sampling.temperature == 0 else f" The answers above are drawn at temperature {row.sampling.temperature:g}; set it to 0 to see the same."
        )
        st.caption(f"Runs without PersonaScope and answers greedily, with the same ids.{sampled}")
        if written.vectors:
            st.download_button(f"{snippet.VECTORS_FILE}, to be put beside it", written.vectors, snippet.VECTORS_FILE, icon=":material/download:")
        st.code(written.code, language="python")
