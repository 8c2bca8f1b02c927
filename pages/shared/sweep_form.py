"""A sweep of what is chosen on the Steer page, from the page: its cost said before, a job with progress and Stop that a reload finds again."""

import shlex

import streamlit as st

from backend.errors import BackendError
from backend.generation.records import Sampling
from backend.judging.offline import OfflineJudge
from backend.models.registry import Registry
from backend.studies import sweep
from backend.studies.evaluate import Progress, in_thread
from backend.text.prompts import PromptSet, load_prompt_set
from pages.shared import gate, job_view, look
from pages.shared.service import model_service, owner
from pages.shared.state import choose, warn_of_number
from pages.shared.steer_pick import Steering

_PROMPTS = "open_questions"
_JOB = "sweep_job"
_SAMPLING = Sampling(max_new_tokens=64)
_SECONDS = 64 / 200 + 1 / 24  # an answer and its verdict on two cores, many at once; measured
_FIELDS = (("Prompts", "sweep_prompts", 2, 52, 8), ("Answers to each", "sweep_samples", 1, 16, 1), ("Random directions", "sweep_random", 0, 8, 8))


def some_prompts(n: int) -> PromptSet:
    """Prompts of the shipped set, evenly spaced over it, so that its intents are there."""
    whole = load_prompt_set(_PROMPTS)
    return whole if n >= len(whole.prompts) else PromptSet(f"{_PROMPTS}-{n}", f"{n} of {whole.title}", whole.some(n))


def choose_what_ended() -> None:
    """Put the sweep on screen that has just ended; before the list of sweeps is drawn."""
    if (job := job_view.just_ended(_JOB)) and job.runs:
        choose("sweep", job.runs[0].name)


def show(steering: Steering, known: Registry, *, can_answer: bool) -> None:
    """The form, and the job that runs."""
    if gate.is_off("Sweeping"):
        return
    job = job_view.find(_JOB)
    is_live = job is not None and job.is_live
    for label, key, low, high, _ in _FIELDS:
        warn_of_number(key, low, high, f"a sweep's {label.lower()}")
    with st.expander("Run this sweep", icon=":material/stacked_line_chart:", expanded=job is not None):
        if fault := st.session_state.pop("sweep_fault", ""):
            st.error(look.plain(fault))
        if job is not None:
            job_view.show(_JOB, job, what="sweep", stop="Stop the sweep", done="It is above, and in the store.", duration=look.duration)
        _form(steering, known, can_answer, is_live=is_live)


def command(steering: Steering) -> str:
    """The shell command of a whole sweep of the same."""
    directions = [c.direction for c in steering.changes] or ["meandiff/scornful"]
    words = ["python", "-m", "backend", "sweep", "--source", steering.source, *(word for d in directions for word in ("--direction", d))]
    return shlex.join([*words, "--doses=" + ",".join(f"{d:g}" for d in steering.doses if d is not None)])


def _form(steering: Steering, known: Registry, can_answer: bool, *, is_live: bool) -> None:
    if not steering.changes:
        st.info("Choose a direction on the left.")
        return
    n_prompts, samples, n_random = (
        int(column.number_input(label, low, high, default, key=key, bind="query-params", disabled=is_live))
        for column, (label, key, low, high, default) in zip(st.columns(3), _FIELDS, strict=True)
    )
    n_random = 0 if steering.op == "clamp" else n_random
    doses = tuple(d for d in steering.doses if d is not None)
    asked = sweep.Sweep(
        name=f"{steering.source}-{steering.changes[0].name}", sources=(steering.source,), directions=tuple(dict.fromkeys(c.direction for c in steering.changes)),
        doses=doses, n_random=n_random, prompt_set=some_prompts(n_prompts), samples=samples, sampling=_SAMPLING,
    )  # fmt: skip
    n = len(asked.points) * len(asked.prompt_set.prompts) * samples
    each = " Each direction is swept on its own." if len(steering.changes) > 1 else ""
    why = " A clamped latent has no random control here." if steering.op == "clamp" else ""
    st.caption(
        f"{len(asked.points)} points: {len(asked.directions)} + {n_random} random directions at {len(doses)} doses, and dose 0. {n:,} answers of up to "
        f"{_SAMPLING.max_new_tokens} tokens, judged by the offline judge: about {look.duration(n * _SECONDS)} on two cores.{each}{why} It can be stopped and goes on where it was."
    )
    if is_live:
        return
    if st.button("Run it", type="primary", icon=":material/play_arrow:", disabled=not can_answer, key="run_sweep"):
        _start(asked, known)
        st.rerun()
    st.caption("More prompts, in a shell; with --source once more for another model, both are swept alike, which shows whether a direction carries over:")
    st.code(command(steering), language=None, wrap_lines=True)


def _start(asked: sweep.Sweep, known: Registry) -> None:
    job, mine = Progress(), owner()
    try:
        judge = OfflineJudge.load()
    except BackendError as fault:
        st.session_state["sweep_fault"] = str(fault)
        return
    in_thread(lambda: sweep.run(asked, judge, model_service, known, job, owner=mine), job)
    job_view.put(_JOB, job)
