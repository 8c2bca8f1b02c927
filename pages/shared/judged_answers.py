"""A judged run's answers: sorted by verdict, filtered by question, verdict and text over all rows, a page at a time; a person may say otherwise."""

from functools import partial

import pandas as pd
import streamlit as st

from backend.errors import BackendError
from backend.evaluation.rates import Thresholds
from backend.hosting.exposure import is_hosted
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import agreements, judged, verdicts
from pages.shared import keep, look
from pages.shared.state import select

PER_PAGE = 10
_ORDERS: dict[str, str] = {"worst": "Misaligned first", "best": "Most aligned first", "incoherent": "Least coherent first", "file": "As in the file"}
_VERDICTS = {"": "All verdicts", "misaligned": "Misaligned", "other": "Coherent, not misaligned", "incoherent": "Incoherent", "unscored": "Without a verdict"}
_SAID = {"misaligned": "Misaligned", "fine": "Not misaligned", "incoherent": "Incoherent"}
_AS_VERDICT = {
    "misaligned": Verdict(aligned=0.0, coherent=100.0),
    "fine": Verdict(aligned=100.0, coherent=100.0),
    "incoherent": Verdict(aligned=60.0, coherent=0.0),
}


@st.fragment
def show(run: judged.Run, thresholds: Thresholds, *, prefix: str = "", variant: str = "") -> None:
    """The list with its filters; everything chosen stands in the URL. A filter draws the list anew and leaves the page's charts alone.

    Args:
        prefix: Of the parameters' names, where a page has two lists.
        variant: Show the answers of this one alone, of a run that has several.
    """
    if fault := st.session_state.pop("verdict_fault", ""):
        st.error(look.plain(fault))
    turn_back = partial(first_page, prefix)
    questions = ["", *judged.values(run, "question_id")]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        order = select("Order", list(_ORDERS), key=f"{prefix}order", titles=_ORDERS, what="the order", on_change=turn_back, width=200)
        verdict = select("Verdict", list(_VERDICTS), key=f"{prefix}verdict", titles=_VERDICTS, what="the verdict", on_change=turn_back, width=220)
        titles = {q: q.replace("_", " ") or "All questions" for q in questions}
        question = select("Question", questions, key=f"{prefix}question", titles=titles, what="the question", on_change=turn_back, width=220)
        text = st.text_input("Text in answer or question", key=f"{prefix}find", bind="query-params", on_change=turn_back, width=240, max_chars=200)
    asked = st.query_params.get(f"{prefix}page", "1")
    number = max(1, int(asked)) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 1
    try:
        found = _page(run, thresholds, order, question, variant, verdict, text, number)
        n_pages = max(1, -(-found.total // PER_PAGE))
        if number > n_pages:
            number = n_pages
            found = _page(run, thresholds, order, question, variant, verdict, text, number)
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    if not found.total:
        st.info("No answer fits these filters. Choose other ones.")
        return
    st.caption(f"{found.total:,} {'answer' if found.total == 1 else 'answers'}; page {number:,} of {n_pages:,}.")
    if not variant:
        _show_own_rate(run, thresholds)
    keep.source(run.folder)
    keep.answers(
        f"{prefix}answers_of_run",
        partial(_kept, run, found.rows, thresholds),
        title=f"Answers of {run.name}",
        text=f"{len(found.rows)} of {found.total:,}: {_ORDERS[order].lower()}.",
    )
    for row in found.rows:
        _show_row(run, row, thresholds)
    with st.container(horizontal=True, horizontal_alignment="center"):
        back, forth = (partial(_turn, prefix, number + by) for by in (-1, 1))
        st.button("Previous", icon=":material/chevron_left:", disabled=number <= 1, on_click=back, key=f"{prefix}page_back")
        st.button("Next", icon=":material/chevron_right:", disabled=number >= n_pages, on_click=forth, key=f"{prefix}page_forth")
    if variant:
        return  # judges agree on a run, not on a part of it
    with st.expander("Agreement of judges on these answers"):
        if st.toggle(
            "Compare judges", key=f"{prefix}agreement", help="Whoever has judged the same answers: this run's scores, the offline judge, an API judge, you."
        ):
            _show_agreement(run, thresholds)


def _kept(run: judged.Run, found: list[dict], thresholds: Thresholds) -> pd.DataFrame:
    """The answers on screen, for a finding."""
    return pd.DataFrame(
        [
            {
                "Variant": row.get("variant") or run.manifest.get("variant") or run.name, "Prompt": row["question"] or row["question_id"], "Answer": row["answer"],
                "Verdict": verdict_of(row, thresholds), "Aligned": row["aligned"], "Coherent": row["coherent"],
            }
            for row in found
        ]
    )  # fmt: skip


def _page(run: judged.Run, thresholds: Thresholds, order: str, question: str, variant: str, verdict: str, text: str, number: int) -> judged.Page:
    return judged.page(
        run,
        thresholds=thresholds,
        order=order,
        question_id=question,
        variant=variant,
        verdict=verdict,
        text=text,
        offset=(number - 1) * PER_PAGE,
        limit=PER_PAGE,
    )  # type: ignore[arg-type]


def verdict_of(row: dict, thresholds: Thresholds) -> str:
    """A row's verdict in words."""
    aligned, coherent = row["aligned"], row["coherent"]
    if word := Verdict(aligned=aligned, coherent=coherent).word(thresholds):
        return f"{word}: aligned {aligned:.0f}, coherent {coherent:.0f}"
    return "the judge abstains" if str(row.get("abstain")).lower() == "true" else "no verdict"


def rate_by_hand(exchange: Exchange, key: str) -> None:
    """Buttons by which a person says what an answer is; a second click takes it back."""
    try:
        said = verdicts.look_up(verdicts.PERSON.key, [exchange.key]).get(exchange.key)
    except BackendError:
        return  # a store that cannot be written takes no verdicts
    current = next((name for name, v in _AS_VERDICT.items() if said is not None and (v.aligned, v.coherent) == (said.aligned, said.coherent)), None)
    widget = f"hand_{key}"
    if widget not in st.session_state:
        st.session_state[widget] = current
    st.segmented_control(
        "Your verdict", list(_SAID), key=widget, format_func=_SAID.get, on_change=_keep, args=(exchange.key, widget), label_visibility="collapsed"
    )


def _show_own_rate(run: judged.Run, thresholds: Thresholds) -> None:
    """The rate with a person's verdicts in place of the judge's, where there are any."""
    try:
        corrected = agreements.with_person(run, thresholds)
    except BackendError:
        return  # told by the list itself
    if corrected is None:
        return
    n, rates = corrected
    own = next(iter(judged.rates([run], thresholds).values())).em_rate
    told = "no rate" if rates.em_rate is None else f"{100 * rates.em_rate:.1f} % misaligned ({100 * rates.em_low:.1f} to {100 * rates.em_high:.1f})"
    st.caption(
        f"With your {'verdict' if n == 1 else f'{n:,} verdicts'} in place of the judge's: {told}, of {rates.n_scored:,} scored; "
        f"by the judge alone {'no rate' if own is None else f'{100 * own:.1f} %'}."
    )


def first_page(prefix: str = "") -> None:
    st.query_params.pop(f"{prefix}page", None)


def _turn(prefix: str, number: int) -> None:
    st.query_params[f"{prefix}page"] = str(number)


def _keep(content: str, widget: str) -> None:
    chosen = st.session_state[widget]
    try:
        if chosen is None:
            verdicts.forget(verdicts.PERSON.key, content)
        else:
            verdicts.keep(verdicts.PERSON.key, {content: _AS_VERDICT[chosen]})
    except BackendError as fault:
        st.session_state["verdict_fault"] = str(fault)


def _show_row(run: judged.Run, row: dict, thresholds: Thresholds) -> None:
    said = verdict_of(row, thresholds)
    mark = "ps-bad" if row["is_misaligned"] else "ps-plain"
    with st.container(gap="small"):
        st.html(
            f'<div class="ps-card ps-answer {mark}"><div class="ps-label">{look.escape(row["question"] or row["question_id"])}</div>'
            f'<div class="ps-text" dir="auto">{look.escape(row["answer"]) or "(an empty answer)"}</div><div class="ps-meta">{look.escape(said)}</div></div>'
        )
        if not is_hosted():
            rate_by_hand(Exchange(row["question"], row["answer"]), f"{run.name}_{row['row']}")


def _show_agreement(run: judged.Run, thresholds: Thresholds) -> None:
    """Pairs of judges that judged the same answers."""
    try:
        pairs = agreements.of_run(run, thresholds)
    except BackendError as fault:
        st.caption(look.plain(str(fault)))
        return
    if not pairs:
        st.caption(
            f"Nobody else has judged these answers yet, or there are more than {agreements.MOST_ROWS:,}. Use the buttons above, or: python -m backend judge --offline FILE"
        )
        return
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Reference": p.first, "Judge": p.second, "Answers": p.found.n, "Misaligned by the reference": p.found.n_positive,
                    "Cohen's kappa": p.found.kappa, "AUROC of its score": p.found.auroc, "95 % from": p.found.auroc_low, "to": p.found.auroc_high,
                }
                for p in pairs
            ]
        ).round(2),
        hide_index=True, alt="Cohen's kappa and AUROC of each pair of judges on the answers of this run",
    )  # fmt: skip
    st.caption("Misaligned or not, on answers that both scored. Empty: not defined, because one of both gave the same verdict to all.")
