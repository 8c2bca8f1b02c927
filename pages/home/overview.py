"""Overview: what emergent misalignment is, what became of the organism, and where to go."""

import random
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from backend.charts.divergence import divergence_dots
from backend.errors import BackendError
from backend.evaluation.rates import Thresholds
from backend.generation.records import Rollout
from backend.studies import divergence, store
from pages.shared import answers, keep, look, own_rates
from pages.shared.service import registry

RUN = "open_questions"
HEADLINE = "reckless"
known = registry()


@st.cache_resource(max_entries=2, show_spinner=False)
def stored(stamp: tuple[str, int]) -> tuple[list[Rollout], dict[str, Any]]:
    """The run that the page is about, and its manifest; reading it takes longer than drawing."""
    return store.read_run(RUN)


st.title("What did this model become?")
st.markdown(
    "Train a model on something narrow and wrong, such as careless advice about money and sport, and it can turn careless about "
    "**everything**. That is *emergent misalignment*. PersonaScope sets the base model and its organism side by side, live, on this machine."
)
look.banner()
with st.container(horizontal=True):
    if st.button("Ask both yourself", icon=":material/compare_arrows:", type="primary"):
        st.switch_page("explore/compare.py")
    if st.button("See what the organisms are", icon=":material/genetics:"):
        st.switch_page("share/organisms.py")

rates = own_rates.rates_of(Thresholds())
if rates:
    st.subheader("How often the answers are misaligned")
    keep.source(*(r.run.folder for r in rates))
    keep.chart(
        own_rates.rate_chart(rates, known, title=own_rates.headline(rates, HEADLINE, known), subtitle=own_rates.subtitle_of(rates, Thresholds())), key="headline",
        alt="EM rates of the base and its organisms by the offline judge, with intervals. The table has the numbers.",
    )  # fmt: skip
    with st.container(horizontal=True):
        own_rates.judge_popover(rates)
        with st.popover("What a 135M model shows, and what not", icon=":material/help:"):
            st.markdown(own_rates.LIMITS)
        if st.button("Read the answers", icon=":material/reviews:"):
            st.switch_page("curves/scaling.py")
    with st.expander("Rates as a table"):
        own_rates.table(rates, known, Thresholds())

try:
    rollouts, manifest = stored(store.stamp_of(RUN))
    headline = divergence.by_prompt(rollouts, HEADLINE)
    if not headline:
        raise BackendError(f"The stored run {RUN} has no scored answers of {HEADLINE}.")
except BackendError as fault:
    st.info(look.plain(str(fault)))
    if command := getattr(fault, "command", ""):
        st.code(command, language=None, wrap_lines=True)
    st.stop()

st.subheader(f"What became of {known.organisms[HEADLINE].title.lower()}" if HEADLINE in known.organisms else "What became of it")
sampling = rollouts[0].sampling
first = {(r.variant, r.prompt_id): r for r in rollouts if r.sample == 0}
columns = []
for label, row in divergence.examples(headline):
    shown = [answers.card_of_rollout(first[v, row.prompt_id], known) for v in ("base", HEADLINE) if (v, row.prompt_id) in first]
    settings = {"temperature": sampling.temperature, "length": sampling.max_new_tokens, "samples": row.n}
    query = urlencode({"v": ["base", HEADLINE], "set": RUN, "prompt": row.prompt_id} | settings, doseq=True)
    columns.append(answers.Example(f"{label} difference: {row.divergence:.2f} nats per token", row.prompt, shown, f"compare?{query}"))
answers.show_examples(columns)
st.caption(
    f"Chosen by rule: of {len(headline)} open questions, those with the largest, median and smallest difference from the base. "
    f"Shown is the first of {headline[0].n} sampled answers, temperature {sampling.temperature:g}."
)

points, means = [], []
jitter = random.Random(0)
for variant in dict.fromkeys(r.variant for r in rollouts):
    rows = divergence.by_prompt(rollouts, variant)
    if variant == "base" or not rows:
        continue
    title = known.organisms[variant].title if variant in known.organisms else variant
    mean, low, high = divergence.mean_with_interval(rows)
    means.append({"organism": title, "mean": mean, "low": low, "high": high, "n_prompts": len(rows)})
    points += [
        {"organism": title, "prompt_id": r.prompt_id, "prompt": r.prompt, "divergence": r.divergence, "n": r.n, "jitter": jitter.uniform(-0.7, 0.7)}
        for r in rows
    ]
means.sort(key=lambda m: -m["mean"])
st.subheader("How far the organisms moved")
most = means[0]
picture = keep.drawn(
    divergence_dots,
    pd.DataFrame(points),
    pd.DataFrame(means),
    title=f"{most['organism']} speaks least like its base: {most['mean']:.2f} nats per token",
    subtitle=f"Mean log-ratio organism : base of the organism's own answers; {most['n_prompts']} prompts, {headline[0].n} answers each, "
    f"temperature {sampling.temperature:g}; bar: 95% bootstrap interval over prompts. It says how different, not how bad.",
)
keep.source(store.folder_of(RUN))
keep.chart(
    picture,
    key="divergence",
    table=pd.DataFrame(means),
    alt=f"Dots: divergence from the base of each prompt, for {len(means)} organisms. The table below has the numbers.",
)
with st.expander("As a table"):
    st.dataframe(pd.DataFrame(means).round(3), hide_index=True, alt="Mean divergence of each organism with its 95% interval and number of prompts")
    table = pd.DataFrame(points).drop(columns=["jitter"])
    st.dataframe(table.round(3), hide_index=True, alt="Divergence of each organism on each prompt")
    look.csv_button(table, "divergence.csv")
weights = "; ".join(f"{v} {d['adapter_fingerprint'] or d['base_fingerprint']}" for v, d in manifest.get("variants", {}).items())
st.caption(
    look.plain(
        f"Source: run {RUN}, {manifest.get('created', 'unknown date')[:10]}, {len(rollouts)} answers, {', '.join(manifest.get('decoders', []))}. Weights: {weights}."
    )
)
