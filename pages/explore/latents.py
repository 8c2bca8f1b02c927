"""Latents: what does a persona latent do on each token, in the base and in the organism, on the same text?"""

import shlex
import time

import numpy as np
import pandas as pd
import streamlit as st

from backend.activations import kept, reading
from backend.charts.latents import drift
from backend.errors import BackendError
from backend.generation.jobs import Job
from backend.models.fingerprint import remembered_fingerprint
from backend.models.records import BASE_ALIAS
from backend.models.sources import availability, base_folder
from backend.saes.latents import SparseLatents, most_telling, parse, strongest, top_changes
from backend.saes.records import availability as sae_availability
from backend.saes.records import fingerprint, sae_folder
from backend.studies import inspection
from backend.studies.compare import current_weights
from pages.shared import answers, keep, look, missing, sae_pick, text_pick, token_view
from pages.shared.sae_pick import counted
from pages.shared.service import model_service, owner, registry
from pages.shared.state import keep_list, kept_list, link, select

MAX_LATENTS = 3
N_OFFERED = 30
N_AT_TOKEN = 12
known = registry()


@st.cache_resource(show_spinner=False)
def _jobs() -> dict[tuple, reading.LatentsJob]:
    """Texts that were read, the last few, the oldest first."""
    return {}


def read(text: inspection.Text, variants: list[str], choice: sae_pick.Choice) -> list[SparseLatents]:
    """Latents of each variant on the same ids: kept ones, else worked out now.

    Raises:
        BackendError: As ``reading.start``; or reading failed.
    """
    weights = [current_weights(v, known) for v in variants]
    if (found := kept.find(choice.sae, weights, text.ids)) is not None:
        return found
    jobs = _jobs()
    key = (choice.sae, fingerprint(sae_folder(choice.sae)), choice.base, tuple(zip(variants, weights, strict=True)), text.ids)
    job = jobs.pop(key, None)
    if job is None or job.job.state in ("failed", "stopped"):
        job = reading.start(model_service(), choice.sae, choice.base, [(v, text.ids) for v in variants], owner=owner())
    jobs[key] = job
    while len(jobs) > 64:
        jobs.pop(next(iter(jobs), key), None)
    line = st.empty()
    while not job.job.wait(0.4):
        line.progress(job.job.n_done / len(variants), progress_of(job.job, len(text.ids)))
    line.empty()
    return job.wait()


def progress_of(job: Job, n_tokens: int) -> str:
    """A line on texts that are being read."""
    if job.started is None:
        return "Loading the model (a few seconds, once)…" if job.state == "loading" else "Waiting for other requests…"
    left = f", about {max(1, round(job.seconds_left))} s left" if job.seconds_left else ""
    under = f" under {job.n_done + 1} of {len(job.rows)} models" if len(job.rows) > 1 else ""
    return f"Reading {counted(n_tokens, 'token')}{under}: {time.monotonic() - job.started:.0f} s{left}"


def keep_picked(widget: str) -> None:
    """Put into the link what was chosen; what was not is chosen anew on every text and for every organism."""
    keep_list("latent", st.session_state[widget])


def pick_latents(found: list[SparseLatents], text: inspection.Text, choice: sae_pick.Choice) -> list[int]:
    """Those of the link or chosen, else the one that tells most on this text; any other can be typed."""
    telling = most_telling(found, text.answer if len(text.answer) else text.content, N_OFFERED)
    asked = {word: parse(word, choice.sae.n_latents) for word in kept_list("latent")}
    good = list(dict.fromkeys(number for number in asked.values() if number is not None))[:MAX_LATENTS]
    if bad := [word[:20] for word, number in asked.items() if number is None]:
        st.warning(f"{look.plain(', '.join(bad)[:60])} is no latent of SAE {choice.sae.key}, which has latents 0 to {choice.sae.n_latents - 1:,}.")
        keep_list("latent", [str(i) for i in good])
    shown = good or telling[:1]
    options = [str(i) for i in dict.fromkeys([*shown, *telling])]
    labels = {str(latent): label for latent, label in choice.tables.labels([int(o) for o in options]).items()}
    widget = f"latents_{choice.sae.key}"
    st.session_state[widget] = [str(i) for i in shown]
    st.multiselect(
        "Latents", options, key=widget, max_selections=MAX_LATENTS, accept_new_options=True, placeholder="Choose, or type a number",
        on_change=keep_picked, args=(widget,),
        format_func=lambda o: f"{o} · {labels[o].text}" if o in labels and labels[o].text else str(o),
        help="Offered: those whose mean over the answer differs most between base and organism on this text; the first is shown until you choose. "
        "Any number can be typed.",
    )  # fmt: skip
    return shown


def quantiles_of(latent: int, choice: sae_pick.Choice) -> list[float]:
    """101 of them over the corpus where it is active; none without the tables."""
    try:
        known_quantiles = choice.tables.one(latent)["quantiles"]
    except BackendError:
        return []
    return np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, len(known_quantiles)), known_quantiles).tolist() if known_quantiles else []


def show_token(place: int, text: inspection.Text, found: list[SparseLatents], variants: list[str], choice: sae_pick.Choice) -> None:
    """What is active on one token, and what changed there."""
    token = text.tokens[place]
    names = [answers.name_of(v, known)[0] for v in variants]
    group = text.group(place)
    several = f" to {group[-1]}, one character" if len(group) > 1 else ""
    st.markdown(f"##### Token {place}{several}: {look.plain(repr(token.text))}")
    at = [strongest([latents.at(i) for i in group]) for latents in found]
    most = sorted({i for a in at for i in a}, key=lambda i: -max(a.get(i, 0.0) for a in at))[:N_AT_TOKEN]
    columns = st.columns(2) if len(found) > 1 else [st.container()]
    tables = [("Most active here", [(i, *(a.get(i, 0.0) for a in at)) for i in most])]
    if len(found) > 1:
        tables.append(("Changed most here", [(i, before, after) for i, before, after in top_changes(at[0], at[1], N_AT_TOKEN)]))
    labels = choice.tables.labels([row[0] for _, rows in tables for row in rows])
    for column, (title, rows) in zip(columns, tables, strict=True):
        column.caption(title)
        frame = pd.DataFrame(
            [{"Latent": sae_pick.latent_link(row[0], choice.sae), "Label": labels[row[0]].text} | dict(zip(names, row[1:], strict=True)) for row in rows]
        )
        column.dataframe(
            frame, hide_index=True, alt=f"{title}: latents with their activation under each variant",
            column_config={"Latent": sae_pick.LINK_COLUMN}
            | {name: st.column_config.NumberColumn(format="%.2f", width="small") for name in names},
        )  # fmt: skip


st.title("Latents on text")
st.markdown("What does a latent do on each token, in the base and in the organism, on the same text?")
with st.sidebar:
    choice = sae_pick.pick_sae(known)
    organisms = [*choice.organisms, *known.checkpoints(choice.base.key), *sae_pick.steered_in_link(choice.base, known)]
    organism = ""
    if organisms:
        organism = select("Organism", organisms, key="organism", titles={o: answers.name_of(o, known)[0] for o in organisms}, what="the organism")
    base_key = BASE_ALIAS if choice.base.key == known.default_base else choice.base.key
    variants = [base_key, *([organism] if organism else [])]
state = sae_availability(choice.sae)
here = {v: availability(*known.resolve(v)) for v in variants}
missing.show(variants, here, known, note="Latents are worked out live, so it must be here.")
if any(a.state != "here" for a in here.values()):
    st.stop()
if state.state != "here":
    st.info(look.plain(state.sentence))
    if state.command:
        st.code(state.command, language=None)
    st.stop()
with st.sidebar:
    try:
        reader = text_pick.tokenizer(choice.base, remembered_fingerprint(base_folder(choice.base)))
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        st.stop()
    picked = text_pick.pick(choice.base, variants, known, reader)
    with_special = st.toggle(
        "Colour template tokens", key="special", bind="query-params", help="Control tokens and the template's words are left out of the scale."
    )
text = picked.text
try:
    found = read(text, variants, choice)
except BackendError as fault:
    st.error(look.plain(str(fault)))
    st.stop()
with st.container(horizontal=True, vertical_alignment="bottom"):
    latents = pick_latents(found, text, choice)
    with st.popover("Link", icon=":material/link:"):
        st.caption("Opens exactly this page.")
        st.code(link(), language=None, wrap_lines=True)
titles = [answers.name_of(v, known)[0] for v in variants]
what = picked.title
sink = 0 if text.tokens[0].role == "content" else -1  # models put an outsized activation on the very first token, whatever it is
labels = choice.tables.labels(latents)
words = [word for v in variants for word in ("--variant", v)] + [word for latent in latents for word in ("--latent", str(latent))]
keep.live(
    "reading", command=shlex.join(["python", "-m", "backend", "latents", *words, "--sae", choice.sae.key, picked.option]), sae=choice.sae.key, layer=choice.sae.layer,
    variants={v: current_weights(v, known) for v in variants}, text=what,
)  # fmt: skip


@st.fragment
def inspect(latent: int) -> None:
    """One latent on the text; a click on a token opens what is active there."""
    values = [one.of(latent) for one in found]
    drawn = [np.where(np.arange(len(value)) == sink, np.nan, value) for value in values]
    panels = [token_view.Panel(title, value) for title, value in zip(titles, drawn, strict=True)]
    if len(values) > 1:
        panels.append(token_view.Panel(f"{titles[1]} less {titles[0]}", drawn[1] - drawn[0], is_signed=True))
    places = text.answer
    st.markdown(f"#### {latent}: {look.plain(labels[latent].text) or 'no label yet'}")
    if len(places):
        means = ", ".join(f"{look.plain(title)} **{value[places].mean():.2f}**" for title, value in zip(titles, values, strict=True))
        st.markdown(f"{look.plain(what)}; mean over {counted(len(places), 'answer token' if text.turns else 'token')}: {means}")
    else:
        st.markdown(f"{look.plain(what)}; it has no token of its own, so there is no mean.")
    place = token_view.show(
        text.tokens, panels, name=sae_pick.name_of(latent, choice.sae), key=f"tokens_{latent}", quantiles=quantiles_of(latent, choice),
        with_special=with_special, turns=text.turns, said=what,
    )  # fmt: skip
    if place is not None:
        show_token(place, text, found, variants, choice)
    rows = [
        {"turn": f"{t.turn + 1} {t.role}", "variant": title, "mean": t.mean, "n": t.n_tokens}
        for title, value in zip(titles, values, strict=True)
        for t in inspection.by_turn(text, value)
    ]
    if len({row["turn"] for row in rows}) > 1:
        keep.chart(
            keep.drawn(drift, pd.DataFrame(rows), titles), key=f"drift_{latent}", title=f"Latent {latent} by message",
            alt=f"Mean activation of latent {latent} on each message, for each variant; the table has the numbers.",
        )  # fmt: skip
    with st.expander("Tokens as a table"):
        frame = pd.DataFrame(
            {"Place": range(len(text.tokens)), "Id": text.ids, "Token": [t.text for t in text.tokens], "Role": [t.role for t in text.tokens]}
            | {title: value.round(4) for title, value in zip(titles, values, strict=True)}
        )
        st.dataframe(frame, hide_index=True, alt=f"Each token with the activation of latent {latent} under each variant")
    st.page_link("explore/latent.py", label=f"All about latent {latent}", icon=":material/search:", query_params={"sae": choice.sae.key, "latent": str(latent)})


for latent in latents:
    inspect(latent)
model_service().warm_up()  # the next text may be none of those kept
st.caption(
    f"SAE {look.plain(choice.sae.key)}: residual stream after layer {choice.sae.layer} of {look.plain(choice.base.title)}; activations as the SAE gives them, "
    f"not normalised. Both variants read the same token ids; only the {'steering' if '+' in organism else 'weights'} {'differs' if '+' in organism else 'differ'}."
)
look.banner()
