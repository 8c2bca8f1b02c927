"""Steer: what happens when I push on a direction, dose by dose?"""

import time
from collections.abc import Sequence
from functools import partial

import streamlit as st

from backend.errors import BackendError
from backend.generation.jobs import Job
from backend.generation.records import Row, Sampling
from backend.models.sources import availability
from backend.studies import compare, dose_window
from backend.studies.store import folder_of, read_text, text_for_link
from backend.studies.sweep import INCOHERENCE_LIMIT
from backend.text.prompts import Prompt, load_prompt_set
from pages.shared import answers, cited_sweep, dose_odds, dose_response, keep, ladder, look, missing, replay, steer_pick, sweep_form
from pages.shared.service import model_service, owner, registry
from pages.shared.state import choose, keep_list, kept_list, link, select, warn_of_number, warn_of_unknown

OWN = "own"
TABS = ["Ladder", "Dose-response"]
PROMPTS = "open_questions"
MEASURES = (
    "**Estimate**: the offline judge's verdict; an answer that was cut is judged up to its last whole sentence.\n\n**Past the limit**: a stored sweep of this model and direction found this dose, or a smaller one, more than "
    f"{100 * INCOHERENCE_LIMIT:.0f} points more incoherent than dose 0. What is misaligned past it says little. Where no sweep did, an answer is flagged that the judge calls "
    "incoherent, and the one at dose 0 not.\n\n**Repeats**: share of three-token sequences that stood in the answer before.\n\n"
    "**Perplexity**: of the answer under the unsteered base.\n\n"
    "**Log-odds**: how much likelier misaligned beginnings are than aligned ones, nats a token, on pairs that each dose reads; worked out when you ask for it."
)
known = registry()
service = model_service()


def ask_now() -> None:
    """What the next run lacks is answered without another click."""
    st.session_state["answer_now"] = True


def pick_prompt() -> Prompt | None:
    """One of the shipped set, or one's own message; None where that is not written yet."""
    prompt_set = load_prompt_set(PROMPTS)
    titles = {p.id: p.text for p in prompt_set.prompts} | {OWN: "Your own message"}
    chosen = select("Prompt", list(titles), key="prompt", titles=titles, what="the prompt")
    if chosen != OWN:
        return prompt_set.get(chosen)
    said = kept_list("ask")
    return Prompt("", read_text(said[0])) if said else None


def pick_sampling() -> tuple[Sampling, int]:
    for parameter, low, high, what in (("temperature", 0, 2, "the temperature"), ("length", 1, 1024, "the length"), ("seed", 0, 10**9, "the seed")):
        warn_of_number(parameter, low, high, what)
    with st.expander("Sampling", icon=":material/casino:"):
        temperature = st.slider(
            "Temperature", 0.0, 2.0, 0.0, 0.1, key="temperature", bind="query-params", help="0 always takes the likeliest token, so what differs is the dose alone."
        )  # fmt: skip
        length = st.number_input("Longest answer (tokens)", 1, 1024, 64, key="length", bind="query-params")
        seed = st.number_input("Seed", 0, 10**9, 0, key="seed", bind="query-params", help="All doses draw with the same seed.")
    return Sampling(temperature=float(temperature), max_new_tokens=int(length)), int(seed)


def pick_free(steering: steer_pick.Steering) -> float | None:
    """One more dose beside the ladder, answered when the slider is let go; None where it stands at 0."""
    doses = steer_pick.DOSES[steering.op]
    most = doses.limit / 2
    key = f"{doses.key}_free"
    warn_of_number(key, -most if doses.has_sign else 0, most, f"one more {doses.noun}")
    free = st.slider(
        f"One more {doses.noun}", -most if doses.has_sign else 0.0, most, 0.0, most / 100, key=key, bind="query-params", on_change=ask_now, format="%g", width=320,
        help="Answered when you let go. At 0 there is none.",
    )  # fmt: skip
    return round(float(free), 6) or None


def in_order(doses: list[float | None], free: float | None, *, is_signed: bool) -> list[float | None]:
    """The ladder's doses with one more in its place."""
    if free is None or free in doses:
        return doses
    if not is_signed:
        return [*doses, free]
    return sorted([*doses, free], key=lambda dose: dose or 0.0)


def current_jobs(turn: compare.Turn) -> list[Job]:
    """The ladder's jobs, found again by the link; what was asked for other answers than these is stopped."""
    jobs = [job for job in map(service.jobs.get, kept_list("ladder")) if job is not None]
    mine = [job for job in jobs if any(p.row.key(p.base.key) in turn.keys for p in job.rows)]
    stop([job for job in jobs if job not in mine])
    for job in mine:
        job.seen = time.monotonic()
    return mine


def start(rows: Sequence[Row]) -> None:
    """Send rows to the service; the job's id goes into the URL, so that a reload finds it again."""
    try:
        keep_list("ladder", [*kept_list("ladder")[-3:], compare.start(service, rows, owner=owner()).id])
    except BackendError as fault:
        st.session_state["fault"] = str(fault)


def stop(jobs: list[Job]) -> None:
    for job in jobs:
        job.cancel()


def past_limits(steering: steer_pick.Steering, doses: list[float | None]) -> dict[float, str]:
    """Doses to the stored sweep that found them past the incoherence limit, or an empty text; a sweep is of one direction."""
    if len(steering.changes) != 1:
        return {}
    runs = dose_window.stored()
    return {dose: dose_window.past_limit(runs, steering.source, steering.changes[0], dose) for dose in doses if dose}


def show_ladder(steering: steer_pick.Steering, prompt: Prompt, sampling: Sampling, seed: int, *, can_answer: bool) -> None:
    """The doses on one prompt, and what is known of each."""
    answers.show_prompt("Prompt", prompt.text)
    st.caption(look.plain(" ".join(part for part in (steer_pick.units(steering), steer_pick.lengths(steering), ladder.say_tokens(steering)) if part)))
    bar = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute")
    with bar:
        buttons = st.container(horizontal=True, vertical_alignment="bottom")
        free = pick_free(steering)
    doses = in_order(steering.doses, free, is_signed=steering.op == "add")
    comparison = compare.Comparison(variants=tuple(steering.variant(d) for d in doses), prompts=(prompt,), sampling=sampling, seed=seed)
    turn = compare.look_up(compare.first_rows(comparison), known)
    jobs = current_jobs(turn)
    live = [job for job in jobs if job.is_live]
    progress = {p.row.key(p.base.key): p for job in jobs for p in job.rows}
    under_way = {key for key, p in progress.items() if p.finish_reason is None and live}
    unanswered = [row for row in turn.missing if row.key(steering.base.key) not in under_way]
    tried = any(key in progress and key not in turn.stored and key not in under_way for key in turn.keys)
    if st.session_state.pop("answer_now", False) and can_answer and unanswered and not tried:
        start(unanswered)
        st.rerun()
    with buttons:
        if live:
            st.button("Stop", icon=":material/stop_circle:", type="primary", on_click=stop, args=(live,), key="stop_job")
        elif can_answer:
            again = not unanswered
            text = "Answer again, live" if again else "Try again" if tried else f"Answer at {len(unanswered)} {'dose' if len(unanswered) == 1 else 'doses'}"
            if st.button(text, type="secondary" if again else "primary", icon=":material/refresh:" if again else ":material/play_arrow:"):
                start(turn.rows if again else unanswered)
                st.rerun()
        with st.popover("Link", icon=":material/link:"):
            st.caption("Opens exactly this page.")
            st.code(link(), language=None, wrap_lines=True)
        with st.popover("What stands under an answer", icon=":material/help:"):
            st.markdown(MEASURES)
    if fault := st.session_state.pop("fault", ""):
        st.error(look.plain(fault))
    with_odds = dose_odds.known(steering, doses, known)
    past = past_limits(steering, doses)

    def follow() -> None:
        for job in live:
            job.seen = time.monotonic()
            look.job_status(job, service)
        found = ladder.with_facts(ladder.rungs(turn, doses, free, progress, live=bool(live)), past, with_odds)
        if not live:
            found = ladder.judged(found, prompt.text, is_busy=bool(service.jobs.live()))
            keep.answers("ladder", partial(ladder.kept_rows, found, steering, prompt.text), title=f"{steering.source} at each dose: {prompt.text[:150]}")
            for item in turn.stored.values():
                keep.source(folder_of(item.run), command=compare.command(comparison))
        ladder.show(found, steering, known)
        if live and not all(job.is_live for job in live):
            st.rerun()

    st.fragment(follow, run_every=0.4 if live else None)()
    if live:
        return
    for job in jobs:
        if job.message:
            (st.error if job.state == "failed" else st.warning)(look.plain(job.message))
    replay.label(turn, progress, known, can_answer)
    if unanswered and not can_answer:
        st.info("The store has not all of these answers.")
    dose_odds.show(steering, doses, with_odds, known, can_answer=can_answer)
    ladder.show_python(ladder.rungs(turn, doses, free, progress, live=False), steering, known)


def take_own() -> None:
    """A typed message goes into the link, a long one into the store."""
    typed = st.session_state["message"]
    if typed is None or not typed.strip():
        return
    try:
        keep_list("ask", [text_for_link(typed)])
        choose("prompt", OWN)
        ask_now()
    except BackendError as fault:
        st.session_state["fault"] = str(fault)


with st.sidebar:
    steering, faults = steer_pick.pick(known)
    try:
        prompt = pick_prompt()
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        prompt = None
    sampling, seed = pick_sampling()

st.title("Steer")
st.markdown("What happens when I push on a direction, dose by dose?")
look.banner()
here = {steering.source: availability(*known.resolve(steering.source))}
can_answer = here[steering.source].state == "here"
if can_answer:
    service.warm_up()
missing.show([steering.source], here, known, note="Stored answers are shown where there are any.")
for told in faults:
    st.error(look.plain(str(told)))
    if command := getattr(told, "command", ""):
        st.code(command, language=None, wrap_lines=True)
warn_of_unknown("tab", TABS, "the tab")
ladder_tab, response_tab = st.tabs(TABS, key="tab", on_change="rerun", bind="query-params")
if ladder_tab.open:
    with ladder_tab:
        if can_answer and steering.changes:
            st.chat_input("Write a message of your own to all doses", key="message", max_chars=100_000, on_submit=take_own)
        if not steering.changes:
            st.info("Choose a direction on the left.")
        elif prompt is None:
            st.info("Write a message above, or choose a prompt on the left." if can_answer else "Choose a prompt on the left.")
        else:
            try:
                show_ladder(steering, prompt, sampling, seed, can_answer=can_answer)
            except BackendError as fault:
                st.error(look.plain(str(fault)))
if response_tab.open:
    with response_tab:
        sweep_form.choose_what_ended()
        shown = dose_response.show(steering.source, [c.direction for c in steering.changes], sweep_form.command(steering))
        sweep_form.show(steering, known, can_answer=can_answer)
        if shown is not None:
            dose_response.show_answers(shown)
        cited_sweep.show()
