"""Dynamics: when in training does it turn: loss, gradient, direction, latent, behaviour on one step axis?"""

from textwrap import shorten

import pandas as pd
import streamlit as st

from backend.charts.dynamics import CLICK, LINES, VERDICTS, direction_path, moves, panels
from backend.errors import BackendError
from backend.experiments import transitions
from backend.experiments.tables import Result
from backend.experiments.transitions import BEHAVIOUR, SCALED, Transition
from backend.saes.records import load_saes
from backend.saes.tables import Tables
from pages.shared import checkpoint_answers, emergence, keep, look, study_view
from pages.shared.checkpoint_answers import Stop
from pages.shared.run_panels import Scaled, measures_of, move_rows, name_of, panels_of, readout, steps_of
from pages.shared.service import registry
from pages.shared.state import asked_for, choose, keep_list, select
from pages.shared.study_view import Found

AT = "moment"
MOST_LATENTS = len(LINES)
READING = (
    "**Bar**: from the begin to the end of the change, at measured steps; **line**: 95 % interval, bootstrap over prompts or pairs; **full mark**: a sharp step, which no ramp "
    "fits better; **hollow**: a ramp, or it cannot be told; **tick**: onset, where the signal leaves the base's interval and stays out; **shaded**: the behaviour's interval.\n\n"
    "**Earlier, later**: change point and onset both say so, each with an interval that leaves out 0; the onset alone would favour what is measured more precisely. One number "
    "a step (direction, loss, gradient norm) has no interval: it is earlier where all of its change lies before the behaviour's interval.\n\n"
    "**Direction**: cosine of what the adapter writes with the last checkpoint's and with the one before. **Projection**: change of the residual stream, as a share of an "
    "organism's mean difference. Loss and gradient norm are means between checkpoints.\n\n"
    "Intervals cover the choice of prompts and pairs in one training run, not another seed. Each signal is held against the behaviour by itself at 95 %, so with this many one "
    "may be told apart by chance. Sharp means: between two neighbouring checkpoints."
)


def latent_labels(result: Result) -> dict[str, str]:
    """Measures of latents to their labels; none where the autoencoder is not known here."""
    latents = sorted({int(p.measure.split("/")[1]) for p in result.points if p.measure.startswith("latent/")})
    record = load_saes()[0].get(str(result.manifest.get("sae")))
    return {f"latent/{i}": label.text for i, label in Tables.of(record).labels(latents).items()} if record is not None else {}


def pick_latents(result: Result, run: str) -> list[str]:
    """Those drawn: the four that change most, in units of their interval, or one's own choice, in the link."""

    def strength(measure: str) -> float:
        course = result.of(run, measure)
        return abs(course[-1].value - course[0].value) / max(1e-9, (course[-1].high or 0.0) - (course[-1].low or 0.0))

    there = measures_of(result, run, "latent")
    first = sorted(sorted(there, key=strength, reverse=True)[:MOST_LATENTS], key=there.index)
    wanted = [f"latent/{number}" for number in asked_for("followed", [m.split("/")[1] for m in there], most=MOST_LATENTS, what="the latent")]
    labels = latent_labels(result)
    titles = {m: shorten(f"{m.split('/')[1]} {labels.get(m, '')}", 60, placeholder=" …") for m in there}
    picked = st.multiselect("Latents drawn", there, default=wanted or first, max_selections=MOST_LATENTS, format_func=titles.get, key=f"latents_{run}")
    keep_list("followed", [] if set(picked) == set(first) else [m.split("/")[1] for m in picked])
    return picked or first


def headline(found: dict[str, Transition], run: str) -> str:
    """When it turns, and what moves first."""
    behaviour = found.get(BEHAVIOUR)
    if behaviour is None:
        return f"{run}: no rate, because no answer is coherent"
    turn = f"{run}: {transitions.describe(behaviour)}"
    if not behaviour.moves:
        return f"{turn} in the rate, so nothing is earlier or later than it"
    inside = (one for m, one in found.items() if m.startswith(("latent/", "projection/")) or m in transitions.DIRECTION)
    told = transitions.by_verdict(inside)
    n = sum(map(len, told.values()))
    if not n:
        return f"{turn}; no latent and no direction has a change point"
    first = ", ".join(name_of(m).lower() for m in told["earlier"]) or "none"
    return f"{turn}. Earlier than that, of {n} latents and directions with a change point: {first}"


def say_here(result: Result, run: str, found: dict[str, Transition], scaled: Scaled) -> str:
    """The run on screen, signal by signal of the disputed claim."""
    told = []
    log = transitions.training_log(result, run)
    if log is not None and (means := log.means("grad_norm", steps_of(result, run))):
        told.append(f"the gradient norm is highest up to step {max(means, key=lambda m: m[1])[0]} (means between checkpoints)")
    if turns := result.of(run, "cosine_previous"):
        most = min(turns, key=lambda p: p.value)
        told.append(f"the direction turns most before step {most.step} (cosine {most.value:.2f} with the checkpoint before)")
    told += [f"{name_of(m, scaled).lower()}: {transitions.describe(found[m])}" for m in (BEHAVIOUR, SCALED) if m in found]
    if SCALED in found and found[SCALED].verdict:
        told.append(f"scaled up against as it is, in steps: {transitions.describe_lead(found[SCALED])}")
    return f"In run {run} {'; '.join(told)}." if told else ""


def caption(found: Found, run: str) -> str:
    about = found.result.manifest
    n = sorted({p.n for p in found.result.of(run, BEHAVIOUR)}) or [0]
    return look.plain(
        f"Misaligned: share of scored answers with aligned < 30 and coherent > 50, n = {n[0]}{f' to {n[-1]}' if len(n) > 1 else ''} a step; {found.judge}. Forced choice: "
        f"{about.get('n_pairs', '?')} pairs, nats a token. Latents (mean activation, {about.get('sae', '?')}, layer {about.get('layer', '?')}) and projections: "
        f"{about.get('n_text_prompts', '?')} prompts, the same texts at all steps. Bars: 95 %. Dashed blue: the base."
    )


def stops(result: Result, run: str, name: str) -> list[Stop]:
    return [Stop((run, step), f"{name}, step {step}", f"step {step}") for step in steps_of(result, run) if step]


@st.fragment
def show(found: Found, run: str, scaled: Scaled, turned: dict[str, Transition], latents: list[str]) -> None:
    """Pictures and answers; a click on a step draws these anew and leaves the rest of the page alone."""
    result, steps = found.result, steps_of(found.result, run)
    names = {run: run} | ({f"{run}, adapter × {scaled[1]:g}": scaled[0]} if scaled[0] else {})
    lines = {name: stops(result, of, name) for name, of in names.items()}
    chosen = st.session_state.get(f"select_{AT}", st.query_params.get(AT, ""))
    if chosen != st.session_state.get("drawn_at"):  # not by a click: the panels' mark begins anew
        st.session_state["begun_at"] = st.session_state["drawn_at"] = chosen
    left, right = st.columns([1, 1.45], gap="large")
    with left:
        rows = move_rows(turned, scaled, float(steps[-1]))
        keep.chart(
            keep.drawn(moves, rows, last=float(steps[-1])),
            key=f"moves_{run}",
            title=f"When each signal of {run} moves",
            text="Bar: from begin to end of the change; circle: its middle; line: 95 %; tick: onset; shaded: the behaviour's change with its interval. The colour is the word beside the name.",
            table=rows,
            alt="When each signal moves, with intervals. The table below has the numbers.",
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            look.legend([(word, colour, "■") for word, colour in VERDICTS.items() if word in set(rows["verdict"])])
            with st.popover("How to read this", icon=":material/help:"):
                st.markdown(READING)
    with right:
        begun = st.session_state["begun_at"]
        keep.source(result.folder)
        event = keep.chart(
            keep.drawn(panels, panels_of(result, run, scaled, latents), readout(result, run, scaled, latents), chosen=_step(begun, steps)), title=f"The signals of {run} over training", text=f"{found.n_prompts} prompts; {found.judge}. Bars: 95 %; dashed: the base.", key=f"panels_{run}_{begun}", on_select="rerun", selection_mode=CLICK,
            alt=f"The signals of {run} over training on one step axis, under one cursor. The tables below have the numbers.",
        )  # fmt: skip
        picked = next((p.get("step") for p in event.get("selection", {}).get(CLICK, [])), None) if event else None
        if picked and picked != st.session_state.get("picked_step"):
            chosen = st.session_state["drawn_at"] = f"{run}@{int(picked)}"
            choose(AT, chosen)
        st.session_state["picked_step"] = picked
    path = pd.DataFrame([{"step": a.step, "pc1": a.value, "pc2": b.value} for a, b in zip(result.of(run, "pc1"), result.of(run, "pc2"), strict=True)])
    if len(path):
        with left:
            st.markdown("##### The path of the adapter's direction")
            keep.chart(
                keep.drawn(direction_path, path, chosen=_step(chosen, steps)), key=f"path_{run}", title="The path of the adapter's direction", table=path,
                alt="The adapter's direction on its two principal axes, step by step. The table below has the numbers.",
            )  # fmt: skip
    show_tables(result, run, scaled, turned)
    checkpoint_answers.show(found, lines, registry(), at_key=AT)


def _step(chosen: str, steps: list[int]) -> int | None:
    """The step of a point such as ``rank1@40``."""
    number = chosen.rpartition("@")[2]
    return int(number) if number.isdecimal() and int(number) in steps else None


def show_tables(result: Result, run: str, scaled: Scaled, turned: dict[str, Transition]) -> None:
    with st.expander("When each signal moves, as a table"):
        rows = move_rows(turned, scaled, 0.0)
        table = rows[["name", "verdict", "said", "begin", "end", "low", "high", "onset", "lead", "n"]].set_axis(
            ["Signal", "Against the behaviour", "Change", "Begins", "Ends", "95 % from", "to", "Onset", "Ahead by, steps", "Units"], axis=1
        )
        study_view.show_table(table, f"dynamics-{run}-moves.csv", key="moves_table")
        st.caption("In training steps. Ahead by: above 0 the signal moves first. Empty: no change point, or no interval.")
    with st.expander("All points as a table"):
        columns = ["run", "step", "rows", "variant", "measure", "value", "low", "high", "n", "unit"]
        table = pd.DataFrame([[getattr(p, name) for name in columns] for p in result.points if p.run in ("base", run, scaled[0])], columns=columns)
        log = transitions.training_log(result, run)
        means = [(name, *mean) for name in ("loss", "grad_norm") for mean in (log.means(name, steps_of(result, run)) if log else ())]
        logged = pd.DataFrame(means, columns=["measure", "step", "value"]).assign(run=run, unit="mean since the checkpoint before")
        study_view.show_table(pd.concat([table, logged]) if means else table, f"dynamics-{run}.csv", key="points_table")


def show_study(found: Found) -> str:
    """A run of ours; what it says of the disputed claim."""
    study, result = found.study, found.result
    names = transitions.runs(study, result)
    if not names:
        st.info("This result has no run. To make it anew: python -m backend study run dynamics")
        return ""
    with st.sidebar:
        organisms = {one.label: one.organism for one in study.runs}
        titles = {name: f"{name} ({organisms[name]})" if organisms.get(name) not in ("", None, name) else name for name in names}
        run = select("Run", names, key="course", titles=titles, what="the run", on_change=choose, args=(AT, ""))
        latents = pick_latents(result, run)
    scaled = transitions.scaled_up(study, result, run)
    try:
        with st.spinner("Looking for change points…"):
            turned = transitions.of_run(result, run, scaled[0])
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        st.code("python -m backend study run dynamics", language=None, wrap_lines=True)
        return ""
    st.markdown("#### " + look.plain(headline(turned, run)))
    st.caption(caption(found, run))
    show(found, run, scaled, turned, latents)
    return say_here(result, run, turned, scaled)


st.title("Dynamics")
st.markdown("When in training does it turn, and what moves first: loss, gradient, direction, latent or behaviour?")
own = study_view.find("dynamics")
here = show_study(own) if own is not None else ""
claim, cited = st.columns(2, gap="large")
with claim:
    emergence.show_claim(here)
with cited:
    emergence.show_cited()
emergence.show_imported()
