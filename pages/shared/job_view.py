"""A run of many answers and verdicts as a page follows it: found again by the link, with progress, Stop and its end."""

import secrets
from collections.abc import Callable

import streamlit as st

from backend.studies.evaluate import Progress
from pages.shared import look
from pages.shared.service import evaluations
from pages.shared.state import keep_list, kept_list

_KEEP = 20  # of those that have ended


def find(name: str) -> Progress | None:
    """The run whose key the link has under ``name``."""
    return evaluations().get("".join(kept_list(name)))


def put(name: str, job: Progress) -> None:
    """Follow a run from now on, by its key in the link."""
    for old in [key for key, one in evaluations().items() if not one.is_live][:-_KEEP]:
        evaluations().pop(old, None)
    key = secrets.token_urlsafe(16)
    evaluations()[key] = job
    keep_list(name, [key])
    st.session_state[f"{name}_live"] = True


def just_ended(name: str) -> Progress | None:
    """The run that ended while this session looked on; told once."""
    return find(name) if st.session_state.pop(f"{name}_ended", False) else None


def show(name: str, job: Progress, *, what: str, stop: str, done: str, duration: Callable[[float], str]) -> None:
    """How far a run is, or how it ended; when it ends, the page runs again.

    Args:
        what: What goes on when it is started again after a stop, such as "sweep".
        stop: Words on the button.
        done: Where the result is.
        duration: Seconds in words.
    """
    if job.is_live:
        st.button(stop, icon=":material/stop_circle:", type="primary", on_click=job.stop.set, key=f"stop_{name}")
    st.fragment(_follow, run_every=0.5 if job.is_live else None)(name, job, what, done, duration)


def _follow(name: str, job: Progress, what: str, done: str, duration: Callable[[float], str]) -> None:
    was_live = st.session_state.get(f"{name}_live", False)
    if job.is_live:
        left = job.seconds_left
        text = f"{'Answering' if job.phase == 'answering' else 'Judging'}: {job.n_done} of {job.n_all}" + (f", about {duration(left)} left" if left else "")
        st.progress(min(1.0, job.n_done / max(1, job.n_all)), "Stopping…" if job.stop.is_set() else text)
    elif job.phase == "failed":
        st.error(look.plain(job.message))
    elif job.phase == "stopped":
        st.info(f"Stopped. What was answered and judged is kept: the same {what} goes on from there.")
    else:
        st.success(f"Done. {done}" + (f" {look.plain(job.message)}" if job.message else ""))
    st.session_state[f"{name}_live"] = job.is_live
    if was_live and not job.is_live:
        st.session_state[f"{name}_ended"] = True
        st.rerun()
