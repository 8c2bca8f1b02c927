"""Making a finding's numbers anew from its page: progress, Stop, and what differs."""

import streamlit as st

from backend.errors import BackendError
from backend.hosting.exposure import is_hosted
from backend.reports.records import Finding
from backend.reports.reproduce import Rerun, checked
from pages.shared import finding_view, look


@st.cache_resource(show_spinner=False)
def _reruns() -> dict[str, Rerun]:
    """The last rerun of each finding, so that a reload finds it."""
    return {}


def offer(finding: Finding) -> None:
    """A button, or how far it is, or what came out."""
    if is_hosted():
        return
    rerun = _reruns().get(finding.key)
    if rerun is None or rerun.state != "running":
        n = sum(_can(source.command) for source in finding.sources)
        label = "Reproduce" if rerun is None else "Reproduce again"
        told = (
            "Runs the commands below anew, without stored answers, and compares number by number."
            if n
            else "Nothing here is made by a command: cited figures are read, not measured."
        )
        if st.button(label, icon=":material/replay:", disabled=not n, help=told):
            _reruns()[finding.key] = Rerun(finding).start()
            st.rerun()
    if rerun is not None:
        st.fragment(_follow, run_every=0.5 if rerun.state == "running" else None)(rerun)


def _follow(rerun: Rerun) -> None:
    if rerun.state == "running":
        st.button("Stop", icon=":material/stop_circle:", type="primary", on_click=rerun.stop, key="stop_rerun")
        st.caption(look.plain(rerun.line))
        return
    if st.session_state.get("rerun_seen") != id(rerun):  # its end: the whole page once more
        st.session_state["rerun_seen"] = id(rerun)
        st.rerun()
    if rerun.fault:
        st.error(look.plain(rerun.fault))
    for held in rerun.held:
        finding_view.show_held(held)
    for sentence in rerun.left_out:
        st.caption(look.plain(sentence))
    if rerun.state == "done":
        n, same = sum(len(held.pairs) for held in rerun.held), sum(len(held.pairs) - len(held.different) for held in rerun.held)
        st.caption(f"Made anew in {rerun.seconds / 60:.1f} minutes: {same:,} of {n:,} values equal, within a millionth.")


def _can(command: str) -> bool:
    try:
        return bool(checked(command))
    except BackendError:
        return False
