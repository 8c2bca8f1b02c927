"""An evaluation from the page: what is asked, a job with progress and Stop, found again after a reload."""

import streamlit as st

from backend.errors import BackendError, InputError
from backend.generation.records import MAX_SAMPLES, Sampling
from backend.judging.verdicts import Judge
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry
from backend.models.sources import availability
from backend.studies import compare
from backend.studies.evaluate import Evaluation, start
from backend.text.prompts import load_prompt_set, own_sets, shipped_sets
from pages.shared import gate, job_view, look, missing
from pages.shared.service import model_service, owner

_MOST_API_ANSWERS = 2000
_TOKENS_OF_A_SCORE = 350  # prompt, question and answer
_JOB = "evaluation"
_JUDGES = {"offline": "Offline judge (an estimate)", "api": "API judge, as set in the environment"}


def show(known: Registry) -> None:
    """The form, and the job that runs."""
    if gate.is_off("Evaluating"):
        return
    job = job_view.find(_JOB)
    if fault := st.session_state.pop("evaluation_fault", ""):
        st.error(look.plain(fault))
    with st.expander("Evaluate variants yourself", icon=":material/rule:", expanded=job is not None):
        if job is not None:
            job_view.show(_JOB, job, what="evaluation", stop="Stop", done="The rates are above, and in the store.", duration=_in_minutes)
        if job is None or not job.is_live:
            _form(known)


def _form(known: Registry) -> None:
    names = [v for v in known.variants() if availability(*known.resolve(v)).state == "here"]
    with st.form("evaluate", border=False):
        variants = st.multiselect("Variants", names, default=[v for v in (BASE_ALIAS, "reckless") if v in names], max_selections=compare.MAX_SHOWN)
        titles = {s: load_prompt_set(s).title for s in shipped_sets() if s != "tuning"} | {s: s for s in own_sets()}
        chosen = st.selectbox("Prompt set", list(titles), format_func=titles.get)
        samples = st.number_input("Answers to each prompt", 1, MAX_SAMPLES, 4)
        judge = st.radio("Judge", list(_JUDGES), format_func=_JUDGES.get, horizontal=True)
        understood = st.checkbox("For the API judge: I may spend the key of this server. It asks two requests an answer.")
        asked = st.form_submit_button("Evaluate", type="primary", icon=":material/play_arrow:")
    if not names:
        missing.show([BASE_ALIAS], {BASE_ALIAS: availability(*known.resolve(BASE_ALIAS))}, known)
    if not asked:
        return
    try:
        prompt_set = load_prompt_set(chosen)
        n_answers = len(prompt_set.prompts) * len(variants) * int(samples)
        if judge == "api" and not (understood and n_answers <= _MOST_API_ANSWERS):
            raise InputError(
                f"This asks the API judge for {2 * n_answers:,} scores, about {n_answers * _TOKENS_OF_A_SCORE * 2:,} tokens in. Tick the box below it to go on; "
                f"from a page at most {_MOST_API_ANSWERS:,} answers are judged so, more by: python -m backend evaluate --judge api"
            )
        comparison = compare.Comparison(variants=tuple(variants), prompts=prompt_set.prompts, sampling=Sampling(), samples=int(samples))
        job = start(Evaluation(comparison=comparison, prompt_set=prompt_set), _judge_maker(judge), model_service, known, owner=owner())
    except BackendError as fault:
        st.session_state["evaluation_fault"] = str(fault)
        st.rerun()
    job_view.put(_JOB, job)
    st.rerun()


def _in_minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


def _judge_maker(kind: str):
    """What makes the judge, in the job's thread; settings that are missing are said at once."""
    if kind == "api":
        from backend.judging.api import ApiJudge
        from backend.judging.endpoint import endpoint_from_environment

        endpoint = endpoint_from_environment()
        return lambda: ApiJudge(endpoint)

    def offline() -> Judge:
        from backend.judging.offline import OfflineJudge

        return OfflineJudge.load()

    return offline
