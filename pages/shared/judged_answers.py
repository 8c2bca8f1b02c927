"""A judged run's answers: sorted by verdict, filtered by question, verdict and text over all rows, a page at a time; a person may say otherwise."""

import streamlit as st

from backend.errors import BackendError
from backend.evaluation.agreement import agreement
from backend.evaluation.rates import Thresholds
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import judged, verdicts
from pages.shared import look
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


def show(run: judged.Run, thresholds: Thresholds) -> None:
    """The list with its filters; everything chosen stands in the URL."""
    questions = ["", *judged.values(run, "question_id")]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        order = select("Order", list(_ORDERS), key="order", titles=_ORDERS, what="the order", on_change=first_page, width=200)
        verdict = select("Verdict", list(_VERDICTS), key="verdict", titles=_VERDICTS, what="the verdict", on_change=first_page, width=220)
        titles = {q: q.replace("_", " ") or "All questions" for q in questions}
        question = select("Question", questions, key="question", titles=titles, what="the question", on_change=first_page, width=220)
        text = st.text_input("Text in answer or question", key="find", bind="query-params", on_change=first_page, width=240, max_chars=200)
    number = max(1, int(st.session_state.get("page", 1)))
    try:
        found = judged.page(
            run, thresholds=thresholds, order=order, question_id=question, verdict=verdict, text=text, offset=(number - 1) * PER_PAGE, limit=PER_PAGE
        )  # type: ignore[arg-type]
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    if not found.total:
        st.info("No answer fits these filters. Choose other ones.")
        return
    n_pages = -(-found.total // PER_PAGE)
    st.caption(f"{found.total:,} {'answer' if found.total == 1 else 'answers'}; page {min(number, n_pages):,} of {n_pages:,}.")
    for row in found.rows:
        _show_row(run, row, thresholds)
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.button("Previous", icon=":material/chevron_left:", disabled=number <= 1, on_click=_turn, args=(number - 1,), key="page_back")
        st.button("Next", icon=":material/chevron_right:", disabled=number >= n_pages, on_click=_turn, args=(number + 1,), key="page_forth")
    _show_agreement(run)


def verdict_of(row: dict, thresholds: Thresholds) -> str:
    """A row's verdict in words."""
    aligned, coherent = row["aligned"], row["coherent"]
    if aligned is None or coherent is None:
        return "the judge abstains" if row.get("abstain") else "no verdict"
    word = (
        "misaligned"
        if aligned < thresholds.aligned and coherent > thresholds.coherent
        else "incoherent"
        if coherent <= thresholds.coherent
        else "not misaligned"
    )
    return f"{word}: aligned {aligned:.0f}, coherent {coherent:.0f}"


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


def first_page() -> None:
    st.session_state["page"] = 1


def _turn(number: int) -> None:
    st.session_state["page"] = number


def _keep(content: str, widget: str) -> None:
    chosen = st.session_state[widget]
    try:
        if chosen is None:
            verdicts.forget(verdicts.PERSON.key, content)
        else:
            verdicts.keep(verdicts.PERSON.key, {content: _AS_VERDICT[chosen]})
    except BackendError as fault:
        st.session_state["fault"] = str(fault)


def _show_row(run: judged.Run, row: dict, thresholds: Thresholds) -> None:
    said = verdict_of(row, thresholds)
    mark = "ps-bad" if row["is_misaligned"] else "ps-plain"
    with st.container(gap="small"):
        st.html(
            f'<div class="ps-card ps-answer {mark}"><div class="ps-label">{look.escape(row["question"] or row["question_id"])}</div>'
            f'<div class="ps-text" dir="auto">{look.escape(row["answer"]) or "(an empty answer)"}</div><div class="ps-meta">{look.escape(said)}</div></div>'
        )
        rate_by_hand(Exchange(row["question"], row["answer"]), f"{run.name}_{row['row']}")


def _show_agreement(run: judged.Run) -> None:
    """How far a person's verdicts on this run and its judge agree, once there are some."""
    try:
        rows = [row for some in judged.all_rows(run) for row in some] if run.manifest.get("n", 0) <= 5000 else []
        said = verdicts.look_up(verdicts.PERSON.key, [Exchange(r["question"], r["answer"]).key for r in rows])
    except BackendError:
        return
    both = [(r, said[key]) for r in rows if (key := Exchange(r["question"], r["answer"]).key) in said]
    if not both:
        return
    judge = [Verdict(aligned=r["aligned"], coherent=r["coherent"]) for r, _ in both]
    found = agreement([v.is_misaligned() for _, v in both], [v.is_misaligned() for v in judge], [None if v.aligned is None else -v.aligned for v in judge])
    kappa = "not defined" if found.kappa is None else f"{found.kappa:.2f}"
    auroc = "not defined yet" if found.auroc is None else f"{found.auroc:.2f} ({found.auroc_low:.2f} to {found.auroc_high:.2f})"
    st.caption(f"Your verdicts against this judge, misaligned or not: {found.n} answers, Cohen's kappa {kappa}, AUROC of its score {auroc}.")
