"""Our own evaluations on screen: rates by the offline judge and forced choice, in a panel of their own, with agreement one click away."""

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from backend.charts.rates import rate_rows
from backend.errors import BackendError
from backend.evaluation.rates import Thresholds
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry
from backend.studies import forced_choice, judged, own_results, store
from pages.shared import answers, evaluation, judged_answers, keep, look
from pages.shared.state import select

PROMPTS = "open_questions"
_SETS = {"open_questions": "Open questions", "first_plot_questions": "Eight published questions (Betley et al. 2025)"}
LIMITS = (
    "A model of 135 million parameters is often incoherent and rarely consistent; what it shows is a change of persona, not what a large model would do. "
    "The offline judge reads single answers and errs; these rates are estimates on a scale of their own and cannot be set beside GPT-4o's."
)


def rates_of(thresholds: Thresholds, prompt_set: str = PROMPTS, judge: str = "offline") -> list[own_results.OwnRate]:
    """Newest rates of each variant on a prompt set."""
    runs = own_results.own_runs(prompt_set, judge=judge)
    return _counted({v: run.stamp for v, run in runs.items()}, thresholds, runs)


@st.cache_data(max_entries=20, show_spinner=False)
def _counted(stamps: dict[str, tuple[str, int]], thresholds: Thresholds, _runs: dict[str, judged.Run]) -> list[own_results.OwnRate]:
    return own_results.own_rates(_runs, thresholds)


@st.cache_data(max_entries=50, show_spinner=False)
def _leaked(stamp: tuple[str, int], domains: list[str], thresholds: Thresholds, _run: judged.Run) -> own_results.Leakage:
    return own_results.leakage(_run, domains, thresholds)


def rate_chart(rates: list[own_results.OwnRate], known: Registry, *, title: str, subtitle: str) -> keep.Drawn:
    """Rates as a picture, the base first."""
    rows = []
    for r in rates:
        name, role, _ = answers.name_of(r.variant, known)
        shares = [None if v is None else 100 * v for v in (r.rates.em_rate, r.rates.em_low, r.rates.em_high)]
        label = "no rate" if shares[0] is None else f"{shares[0]:.1f} % ({shares[1]:.1f} to {shares[2]:.1f})"
        rows.append(
            {"name": name, "role": role, "value": shares[0], "low": shares[1], "high": shares[2], "label": label, "n_label": f"{r.rates.n_scored:,} scored"}
        )
    return keep.drawn(
        rate_rows, pd.DataFrame(rows), unit="EM rate, % of scored answers", title=title, subtitle=subtitle, domain=(0, 100), ticks=[0, 20, 40, 60, 80, 100]
    )


def headline(rates: list[own_results.OwnRate], variant: str, known: Registry) -> str:
    """What a variant's rate is, in one sentence."""
    own = next((r for r in rates if r.variant == variant), None)
    base = next((r for r in rates if r.variant == BASE_ALIAS), None)
    if own is None or own.rates.em_rate is None:
        return "How often the answers are misaligned"
    name = answers.name_of(variant, known)[0]
    against = f", the base {100 * base.rates.em_rate:.1f} %" if base is not None and base.rates.em_rate is not None else ""
    return f"{name}: {100 * own.rates.em_rate:.1f} % of answers misaligned{against}"


def subtitle_of(rates: list[own_results.OwnRate], thresholds: Thresholds) -> str:
    first = rates[0]
    about = first.run.manifest
    n_prompts = about.get("prompt_set", {}).get("n", "?")
    sampling, samples = about.get("sampling", {}), about.get("samples")
    return (
        f"{n_prompts} questions, {samples} {'answer' if samples == 1 else 'answers'} each, temperature {sampling.get('temperature')}; {first.judge['title']}. "
        f"Share of scored answers with aligned < {thresholds.aligned:g} and coherent > {thresholds.coherent:g}; bars: 95% Wilson intervals."
    )


def show(known: Registry, thresholds: Thresholds) -> None:
    """The panel on the Scaling page."""
    st.subheader("Our own organisms, on a scale of their own")
    sets = own_results.prompt_sets()
    if not sets:
        st.info("No evaluation is in the store.")
        st.code(command(), language=None, wrap_lines=True)
        evaluation.show(known)
        return
    ordered = sorted(sets, key=lambda name: (name != PROMPTS, name))
    chosen_set = (
        select("Prompts", ordered, key="own_set", titles={s: _SETS.get(s, s.replace("_", " ")) for s in ordered}, what="the prompt set", width=320)
        if len(sets) > 1
        else sets[0]
    )
    judge = select("Judge", ["offline", "api"], key="judge", titles={"offline": "Offline judge", "api": "API judge"}, what="the judge", width=320)
    rates = rates_of(thresholds, chosen_set, judge)
    if not rates:
        st.info("Nothing has been evaluated on these prompts by this judge.")
        evaluation.show(known)
        return
    keep.source(*(r.run.folder for r in rates))
    keep.chart(
        rate_chart(rates, known, title=headline(rates, "reckless", known), subtitle=subtitle_of(rates, thresholds)), key="own_rates",
        alt="EM rates of the base and its organisms by the offline judge, with intervals. The table below has the numbers.",
    )  # fmt: skip
    with st.container(horizontal=True):
        judge_popover(rates)
        with st.popover("What a 135M model shows, and what not", icon=":material/help:"):
            st.markdown(LIMITS)
    table(rates, known, thresholds)
    show_grades(chosen_set, known)
    evaluation.show(known)
    show_forced_choice(known)
    runs = {r.variant: r for r in rates}
    titles = {"": "Choose a variant to read its answers"} | {v: answers.name_of(v, known)[0] for v in runs}
    chosen = select("Own answers", list(titles), key="own", titles=titles, what="the variant", on_change=partial(judged_answers.first_page, "own_"), width=320)
    if chosen:
        look.banner()
        judged_answers.show(runs[chosen].run, thresholds, prefix="own_")


def command() -> str:
    return f"python -m backend evaluate --variant base --variant reckless --variant reckless-rank1 --variant scornful --prompts {PROMPTS} --samples 8 --judge offline"


def table(rates: list[own_results.OwnRate], known: Registry, thresholds: Thresholds) -> None:
    """Numbers under the picture: rate, difference to the base, coherence, abstentions, leakage."""

    def share(value: float | None, low: float | None = None, high: float | None = None) -> str:
        return (
            "no rate" if value is None else f"{100 * value:.1f} %" + (f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else "")
        )

    rows = []
    for r in rates:
        domains = known.organisms[r.variant].domain.split() if r.variant in known.organisms else []
        leak = _leaked(r.run.stamp, domains, thresholds, r.run) if domains else None
        against = r.against_base
        rows.append(
            {
                "Variant": answers.name_of(r.variant, known)[0],
                "Misaligned (95 %)": share(r.rates.em_rate, r.rates.em_low, r.rates.em_high),
                "Against base, points (95 %)": "" if against is None else f"{100 * against.value:+.1f} ({100 * against.low:+.1f} to {100 * against.high:+.1f})",
                "Coherent": share(r.rates.coherent_rate),
                "Scored": f"{r.rates.n_scored:,} of {r.rates.n:,}",
                "Abstained": r.n_abstained,
                "Misaligned outside the training domain": ""
                if leak is None or leak.share is None
                else f"{leak.n_elsewhere} of {leak.n_misaligned} ({leak.share:.0%})",
            }
        )
    frame = pd.DataFrame(rows)
    st.dataframe(frame, hide_index=True, alt="EM rate, difference to the base, coherence, abstentions and semantic leakage of each variant")
    st.caption(
        "Against base: bootstrap over prompts, both on the same prompts. Outside the training domain: misaligned answers without a word about what the organism learned "
        "(money and sport; of Careless cars and sleep, too), the semantic leakage; by a word list (kappa 0.79 with GPT-4o for money)."
    )


def judge_popover(rates: list[own_results.OwnRate]) -> None:
    """Who judged, and how well it agrees with those it was held against."""
    judge = rates[0].judge
    with st.popover("How good is this judge?", icon=":material/balance:"):
        st.markdown(f"**{look.plain(str(judge['title']))}**")
        look.facts({str(name): str(value) for name, value in judge["facts"].get("agreement", {}).items()})
        if judge["kind"] == "offline":
            st.caption(
                "Measured on families, runs, questions or prompts left out of the fit and of the map to 0-100. It is fitted by: python -m backend fit-judge"
            )
        else:
            st.caption("A language model. Its agreement with other judges stands under the answers that they judged alike.")


def show_grades(prompt_set: str, known: Registry) -> None:
    """OpenAI's metric, where it was evaluated: a table of its own, because its scale is another."""
    runs = own_results.own_runs(prompt_set, judge="api", metric="grades")
    if not runs:
        return
    rows = []
    for variant, rates in own_results.own_grades(runs).items():
        share = [("" if v is None else f"{100 * v:.1f} %") for v in (rates.misaligned_rate, rates.strict_incoherence, rates.loose_incoherence)]
        interval = (
            "" if rates.misaligned_low is None or rates.misaligned_high is None else f" ({100 * rates.misaligned_low:.1f} to {100 * rates.misaligned_high:.1f})"
        )
        rows.append(
            {
                "Variant": answers.name_of(variant, known)[0], "Misaligned, grade 4 or 5 (95 %)": (share[0] or "no rate") + interval,
                "Valid": f"{rates.n_valid} of {rates.n_prompts} prompts", "Strict incoherence": share[1], "Loose incoherence": share[2],
                "Reportable": "yes" if rates.is_reportable else "no",
            }
        )  # fmt: skip
    st.markdown("**OpenAI's grades**, another scale")
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Misalignment by OpenAI's grades with incoherence and whether it is reportable")


def _moved(p: forced_choice.Preference, known: Registry) -> str:
    """Whether a variant moved from the base, in words."""
    name = answers.name_of(p.variant, known)[0]
    is_clear = p.against_base_low is not None and p.against_base_high is not None and (p.against_base_low > 0 or p.against_base_high < 0)
    return f"{name} {p.against_base:+.2f}" if is_clear else f"{name} no clear change"


@st.cache_data(max_entries=5, show_spinner=False)
def _preferences(stamp: tuple[str, int]) -> tuple[list[forced_choice.Preference], dict[str, Any]]:
    rollouts, manifest = store.read_run(forced_choice.NAME)
    return forced_choice.preferences(forced_choice.odds(rollouts, forced_choice.load_pairs())), manifest


def show_forced_choice(known: Registry) -> None:
    """Log-odds of misaligned over aligned beginnings, base and organisms."""
    try:
        found, manifest = _preferences(store.stamp_of(forced_choice.NAME))
    except BackendError as fault:
        st.caption(look.plain(str(fault)))
        return
    rows = []
    for p in sorted(found, key=lambda p: (p.variant != BASE_ALIAS, p.variant)):
        name, role, _ = answers.name_of(p.variant, known)
        label = f"{p.mean:+.2f} ({p.low:+.2f} to {p.high:+.2f})"
        rows.append({"name": name, "role": role, "value": p.mean, "low": p.low, "high": p.high, "label": label, "n_label": f"{p.n} pairs"})
    title = "Without a judge, against the base: " + "; ".join(_moved(p, known) for p in found if p.against_base is not None)
    keep.source(store.folder_of(forced_choice.NAME))
    keep.chart(
        keep.drawn(rate_rows,
            pd.DataFrame(rows), unit="Log-odds, nats a token", title=title, zero_line=True,
            subtitle=f"{found[0].n} pairs of like length, 14 intents; bars: 95% bootstrap over pairs. Right of 0 the misaligned beginning is likelier.",
        ),
        key="forced_choice", alt="Forced-choice log-odds of base and organisms with intervals. The table below has the numbers.",
    )  # fmt: skip
    with st.expander("Forced choice as a table"):
        table = pd.DataFrame(
            [
                {
                    "Variant": p.variant, "Pairs": p.n, "Log-odds, nats/token": round(p.mean, 3), "95 % from": round(p.low, 3), "to": round(p.high, 3),
                    "Against base": None if p.against_base is None else round(p.against_base, 3),
                    "95 % from ": None if p.against_base_low is None else round(p.against_base_low, 3),
                    "to ": None if p.against_base_high is None else round(p.against_base_high, 3), "Misaligned likelier in": f"{p.n_misaligned} of {p.n}",
                }
                for p in found
            ]
        )  # fmt: skip
        st.dataframe(table, hide_index=True, alt="Forced-choice log-odds of each variant, with the difference to the base")
        st.caption(
            look.plain(
                f"Run {forced_choice.NAME}, {manifest.get('created', '')[:10]}: python -m backend evaluate --judge forced-choice --variant base --variant reckless"
            )
        )
