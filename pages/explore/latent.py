"""Latent dictionary: what is known of each latent of an autoencoder, found by label, example or token; one latent in full; published latents."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import backend.saes
from backend.charts.latents import bins, histogram
from backend.errors import BackendError, InputError
from backend.hosting.exposure import is_hosted
from backend.judging.endpoint import Cost, Endpoint, endpoint_from_environment
from backend.saes.latents import parse
from backend.saes.tables import LABEL_LENGTH, Label, Order, outdated
from backend.studies import diffs
from backend.studies.explanations import Case, case_of, explain
from pages.shared import answers, keep, look, sae_card_view, sae_pick
from pages.shared.examples import show_windows
from pages.shared.sae_pick import counted
from pages.shared.service import registry
from pages.shared.state import pick_page, select

PAGE = 50
known = registry()


def asked_latent(choice: sae_pick.Choice) -> int | None:
    """The latent of the link; a number that the autoencoder does not have is told."""
    words = st.query_params.get_all("latent")
    if not words:
        return None
    if (number := parse(words[0], choice.sae.n_latents)) is not None:
        return number
    st.warning(f"This link asks for latent {look.plain(words[0][:20])}; SAE {choice.sae.key} has latents 0 to {choice.sae.n_latents - 1:,}.")
    show_all()
    return None


def show_all() -> None:
    """Back to the list."""
    st.query_params.pop("latent", None)


def browse(choice: sae_pick.Choice) -> None:
    """All latents, searched and paged in the store."""
    left, middle, right = st.columns([3, 1.4, 1], vertical_alignment="bottom")
    words = left.text_input("Search labels, examples and top tokens", key="q", bind="query-params", placeholder="Such as: idiot", max_chars=100)
    orders: dict[Order, str] = {"latent": "Number", "density": "How often active", "largest": "Largest activation"}
    with middle:
        order = select("Order", list(orders), key="latents_order", titles=orders, what="the order")
    found = told(lambda: choice.tables.page(order=order, search=words, n=PAGE))
    if found is None:
        return
    rows, total = found
    with right:
        page = pick_page(total, PAGE, key="latents_page")
    if page > 1:
        rows, _ = choice.tables.page(order=order, search=words, start=(page - 1) * PAGE, n=PAGE)
    if not rows:
        st.info("No latent has these words in its label, examples or top tokens. Try fewer.")
        return
    st.caption(counted(total, "latent"))
    frame = pd.DataFrame(
        [
            {
                "Latent": sae_pick.latent_link(r["latent"], choice.sae), "Label": r["label"] or ("" if r["n_active"] else "not active in the sample"), "Active on": 100 * r["density"], "Largest": r["largest"],
                "Raises": " · ".join(repr(t)[1:-1] for t in r["raises"][:5]), "Lowers": " · ".join(repr(t)[1:-1] for t in r["lowers"][:5]),
            }
            for r in rows
        ]
    )  # fmt: skip
    st.dataframe(
        frame, hide_index=True, height=35 * (len(rows) + 1) + 3, alt="Latents with label, density, largest activation and top tokens",
        column_config={
            "Latent": sae_pick.LINK_COLUMN, "Label": st.column_config.TextColumn(width="large"),
            "Active on": st.column_config.NumberColumn(format="%.3f %%", width="small", help="Of the corpus' tokens."),
            "Largest": st.column_config.NumberColumn(format="%.1f", width="small"),
        },
    )  # fmt: skip


def heading(latent: int, choice: sae_pick.Choice, case: Case | None) -> None:
    """Label and explanation, and what can be done about them.

    Args:
        case: What a language model would be asked; None where there are no examples.
    """
    label, said = choice.tables.labels([latent])[latent], choice.tables.explanations().get(latent)
    guess = f"explained by {said.model}, {said.created[:10]}, from {said.n_examples} examples; a language model's guess" if said else ""
    if said and case and said.examples_sha256 != case.examples_sha256:
        guess += ", and the examples have changed since"
    by = {"own": "yours", "written": "came with this SAE", "explained": guess, "heuristic": "heuristic: its top tokens", "": "no label yet"}[label.by]
    st.markdown(f"#### {latent}: {look.plain(label.text) or 'no label yet'}")
    st.caption(f"{sae_pick.name_of(latent, choice.sae)} · label: {look.plain(by)}")
    if said and label.by != "explained":
        st.markdown(look.plain(f"“{said.text}”"))
        st.caption(look.plain(guess[0].upper() + guess[1:]))
    hint, is_asked = "", False
    try:
        endpoint = endpoint_from_environment()
    except InputError as fault:
        hint = f"A language model can explain a latent, too. {fault}"
    with st.container(horizontal=True, vertical_alignment="center"):
        if not is_hosted():
            edit_label(latent, choice, label, hint)
        if case and not hint and not case.is_answered_by(said, endpoint.model):
            cost = f"One request of about {round(Cost.of([case.prompt], 0).input_tokens, -2):,} tokens, on this server's account."
            is_asked = st.button(f"Ask {look.plain(endpoint.model)} to explain", icon=":material/lightbulb:", help=cost)
        there = {"sae": choice.sae.key, "latent": str(latent)} | ({"organism": organism} if (organism := sae_pick.chosen_organism()) else {})
        st.page_link("explore/latents.py", label="See it on a text", icon=":material/notes:", query_params=there)
        if url := choice.sae.latent_url(latent):
            st.link_button("Neuronpedia", url, icon=":material/open_in_new:")
    if case and is_asked:
        explain_now(case, choice, endpoint)


def edit_label(latent: int, choice: sae_pick.Choice, label: Label, hint: str) -> None:
    """The label, edited in place."""
    saved = st.session_state.pop("label_saved", None)
    if saved == latent:
        st.toast("Label saved.", icon=":material/check:")
    turn = st.session_state.setdefault("label_turn", 0)  # another key is another popover, which is closed
    with st.popover("Edit label", icon=":material/edit:", key=f"edit_label_{latent}_{turn}"):
        with st.form(f"label_{latent}", border=False):
            text = st.text_input(
                "Label", value=label.text if label.by == "own" else "", key=f"label_text_{latent}", max_chars=LABEL_LENGTH, placeholder=label.text
            )
            if st.form_submit_button("Save", type="primary"):
                try:
                    choice.tables.set_labels({latent: text})
                    st.session_state.update({"label_saved": latent, "label_turn": turn + 1})
                    st.rerun()
                except BackendError as fault:
                    st.error(look.plain(str(fault)))
        if hint:
            st.caption(look.plain(hint))


def explain_now(case: Case, choice: sae_pick.Choice, endpoint: Endpoint) -> None:
    """Ask, and show the page with what was said; or say why there is nothing."""
    try:
        with st.spinner(f"Asking {look.plain(endpoint.model)}…"):
            missing = explain([case], choice.tables, endpoint)
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    if missing:
        st.error(look.plain(f"Nothing was kept: {missing[case.latent]}."))
    else:
        st.rerun()


def told(look_up: Callable[[], Any]) -> Any:
    """What a look-up finds; what keeps it from that is said, with the command that helps."""
    try:
        return look_up()
    except BackendError as fault:
        st.info(look.plain(str(fault)))
        if command := getattr(fault, "command", ""):
            st.code(command, language=None, wrap_lines=True)
        return None


def show_latent(latent: int, choice: sae_pick.Choice) -> None:
    """One latent in full."""
    st.button("All latents", icon=":material/arrow_back:", on_click=show_all)
    top = st.container()
    row = told(lambda: choice.tables.one(latent))
    windows = told(lambda: choice.tables.examples(latent)) or []
    with top:
        heading(latent, choice, case_of(row, windows) if row and windows else None)
    if row is not None and not row["n_active"]:
        st.info("This latent is dead: it was active on no token of the corpus.")
    if windows:
        show_windows(windows, latent)
    if row is not None:
        left, right = st.columns(2, gap="large")
        with left:
            st.markdown("##### Activation")
            if row["n_active"]:
                counts = bins(row["histogram"], row["largest"])
                keep.chart(
                    keep.drawn(histogram, counts), key=f"histogram_{latent}", title=f"Activation of latent {latent}", table=counts,
                    alt=f"Histogram of latent {latent}'s activation over the {counted(row['n_active'], 'token')} on which it is active",
                )  # fmt: skip
                with st.expander("The histogram as a table"):
                    named = counts.rename(columns={"low": "From", "high": "To", "n": "Tokens"})
                    st.dataframe(named, hide_index=True, height=240, alt=f"Tokens by activation of latent {latent}")
                median = row["quantiles"][len(row["quantiles"]) // 2]
                look.facts(
                    {
                        "Active on": f"{100 * row['density']:.3g} % of the corpus' tokens ({row['n_active']:,})", "Mean where active": f"{row['mean']:.2f}",
                        "Median where active": f"{median:.2f}", "Largest": f"{row['largest']:.2f}",
                    }
                )  # fmt: skip
        with right:
            st.markdown("##### Tokens that its decoder row raises and lowers")
            look.facts({"Raises": " · ".join(repr(t)[1:-1] for t in row["raises"]), "Lowers": " · ".join(repr(t)[1:-1] for t in row["lowers"])})
            st.caption("Logit lens: decoder row, final norm, unembedding. What later layers make of it is not in it.")
            st.markdown("##### Nearest latents by decoder cosine")
            labels = choice.tables.labels(row["nearest"])
            st.dataframe(
                pd.DataFrame(
                    [
                        {"Latent": sae_pick.latent_link(i, choice.sae), "Cosine": c, "Label": labels[i].text}
                        for i, c in zip(row["nearest"], row["nearest_cosine"], strict=True)
                    ]
                ),
                hide_index=True, alt="Nearest latents with cosine and label",
                column_config={
                    "Latent": sae_pick.LINK_COLUMN, "Cosine": st.column_config.NumberColumn(format="%.2f", width="small")
                },
            )  # fmt: skip
    in_models(latent, choice)


def in_models(latent: int, choice: sae_pick.Choice) -> None:
    """The latent in base and organisms, from the stored diffs."""
    rows = []
    for kept in (one for runs in diffs.kept(choice.sae.key).values() for one in runs):
        organism, texts = kept.manifest["organism"], kept.manifest["texts"]
        found = told(lambda kept=kept: diffs.page(kept, only=[latent], n=1)[0])
        for r in found or []:
            rows.append(
                {
                    "Organism": answers.name_of(organism, known)[0], "Texts": "the same" if texts == "same" else "each its own", "Base": r["base_mean"],
                    "Organism mean": r["organism_mean"], "Change": r["change"], "95 % from": r["low"], "to": r["high"], "Rank by increase": r["rank"],
                    "Prompts": f"{kept.manifest['prompt_set']['name']} ({kept.manifest['n_prompts']})",
                }
            )  # fmt: skip
    st.markdown("##### In base and organisms")
    if not rows:
        st.caption("No diff of an organism on this SAE is in the store. In a shell:")
        st.code(sae_pick.diff_command(choice, known), language=None, wrap_lines=True)
        return
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        alt="Mean activation of this latent over answer tokens in base and organisms, with the change and its interval",
        column_config={c: number(format="%.3f") for c in ("Base", "Organism mean", "95 % from", "to")} | {"Change": number(format="%+.3f")},
    )
    st.caption("Mean over answer tokens, mean over prompts; interval: 95 % bootstrap over prompts.")


def published(choice: sae_pick.Choice) -> None:
    """Latents of others, cited."""
    tables = tomllib.loads((Path(backend.saes.__file__).parent / "reference.toml").read_text("utf-8"))
    st.caption("Published by others and cited here. A number belongs to its own SAE and is no index into any other.")
    for table in tables.values():
        st.markdown(f"##### {look.plain(table['title'])}")
        rows = [{"Number": r["number"], "Name": r["name"] or "not named", "About": r.get("about", ""), "Effect": r.get("effect", "")} for r in table["latents"]]
        frame = pd.DataFrame(rows)
        st.dataframe(frame.loc[:, (frame != "").any()], hide_index=True, alt=f"Published latents of {table['title']}")
        st.caption(f"{look.plain(table['note'])} Source: {look.plain(table['source'])}.")
        if table.get("sae") == choice.sae.key:
            st.caption("These are latents of the SAE chosen on the left; type a number on the page Latents on text.")


st.title("Latent dictionary")
st.markdown("What is each latent: where is it active, what does it write, what is it near?")
with st.sidebar:
    choice = sae_pick.pick_sae(known)
    sae_card_view.show(choice.sae, known)
if warning := outdated(choice.sae):
    st.warning(look.plain(warning))
latent = asked_latent(choice)
if latent is not None:
    show_latent(latent, choice)
else:
    every, cited = st.tabs(["This SAE", "Published latents"], key="tab", on_change="rerun", bind="query-params")
    if every.open:
        with every:
            browse(choice)
    if cited.open:
        with cited:
            published(choice)
