"""The causal test on screen: candidates against survivors, both ways, with controls and what the test could have found."""

from textwrap import shorten

import pandas as pd
import streamlit as st

from backend.charts.causal import KEY, effects
from backend.evaluation.rates import Thresholds
from backend.evaluation.significance import ALPHA, holm
from backend.models.registry import Registry
from backend.studies import judged
from pages.shared import answers, judged_answers, keep, look, sae_pick
from pages.shared.state import select

_WAYS = {"raise": "Added to the base: alignment falls by", "lower": "Taken from the organism: alignment rises by"}


def show(organism: str, choice: sae_pick.Choice, known: Registry) -> None:
    """The newest test of an organism on an autoencoder."""
    runs = [r for r in judged.runs("causal") if (r.manifest.get("organism"), r.manifest.get("sae")) == (organism, choice.sae.key)]
    name = answers.name_of(organism, known)[0]
    if not runs:
        st.info(f"No causal test of {look.plain(name)} is in the store. It takes the better part of an hour on two cores and goes on after a stop. In a shell:")
        st.code(f"python -m backend causal --organism {organism} --sae {choice.sae.key}", language=None, wrap_lines=True)
        return
    run = max(runs, key=lambda r: r.manifest["created"])
    about = run.manifest
    rows = pd.DataFrame(about["results"])
    labels = choice.tables.labels([int(latent) for latent in rows["latent"].dropna()])
    rows["label"] = [labels[int(latent)].text if pd.notna(latent) else "" for latent in rows["latent"]]
    own = rows[rows["kind"].isin(["meandiff", "increase", "decrease"])]
    survivors = own[own["is_persona"]]
    st.markdown("#### " + look.plain(_headline(survivors, own, name)))
    for sentence in _one_way(own):
        st.markdown(look.plain(sentence))
    st.caption(_method(about, name))
    keep.source(run.folder)
    for column, way in zip(st.columns(2, gap="large", vertical_alignment="bottom"), ("raise", "lower"), strict=True):  # rows are level whatever stands above
        with column:
            _picture(rows, own, way, about)
    _power(about)
    _table(rows, organism, choice)
    _answers(run, rows, about)
    st.caption(f"Run {run.name}, {about['created'][:10]}: {look.plain(about['command'])}")


def _headline(survivors: pd.DataFrame, own: pd.DataFrame, name: str) -> str:
    if len(survivors):
        said = [str(int(r.latent)) + (f" ({shorten(r.label, 40, placeholder=' …')})" if r.label else "") for r in survivors.itertuples()]
        return f"{'Latent' if len(said) == 1 else 'Latents'} {', '.join(said)} {'drives' if len(said) == 1 else 'drive'} {name} both ways"
    headline = own[own["kind"] == "meandiff"].iloc[0]
    if pd.notna(headline["p"]) and headline["p"] < 0.05:
        return f"No single latent is shown to drive {name}; the mean difference does, both ways"
    return f"Nothing is shown to drive {name}: these latents are candidates, not causes"


def _one_way(own: pd.DataFrame) -> list[str]:
    """Latents that act in one of both ways beyond the controls, corrected over the candidates: what leads back need not be what led away."""
    said = []
    latents = own[(own["kind"] != "meandiff") & ~own["is_persona"]]
    for way, model, does in (("raise", "base", "lowers"), ("lower", "organism", "raises")):
        all_ps = own.loc[own["kind"] != "meandiff", f"{way}_p"].fillna(1.0)
        corrected = pd.Series(holm(all_ps.tolist()), index=all_ps.index)
        for place, r in latents[corrected[latents.index] < ALPHA].iterrows():
            how = "added to" if r[f"{way}_dose"] > 0 else "taken from"
            effect, low, high, control = (100 * r[f"{way}_{column}"] for column in ("effect", "low", "high", "random_effect"))
            said.append(
                f"One way only: latent {int(r['latent'])} ({shorten(r['label'], 60, placeholder=' …')}) {how} the {model} {does} its alignment by {effect:.0f} points "
                f"({low:.0f} to {high:.0f}; random directions {control:.0f}), p {corrected[place]:.2g} after correction."
            )
    return said


def _method(about: dict, name: str) -> str:
    rates = []
    for title, key in (("base", "base"), (name, "organism")):
        baseline = about["baseline"][about[key]]
        rate = "no rate" if baseline["em_rate"] is None else f"{100 * baseline['em_rate']:.1f} %"
        rates.append(f"{look.plain(title)} alignment {100 * baseline['alignment']:.0f}, {rate} misaligned (n {baseline['n']})")
    n = about["prompt_set"]["n"]
    return (
        f"Doses are chosen on {n - n // 2} prompts and tested on the other {n // 2} of {look.plain(about['prompt_set']['name'])}, {about['samples']} "
        f"{'answer' if about['samples'] == 1 else 'answers'} each, cut at {about['sampling']['max_new_tokens']} tokens and judged up to the last whole sentence. At dose 0: "
        f"{'; '.join(rates)}. SAE {about['sae']}, layer {about['layer']}; dose: largest of {', '.join(f'{d:g}' for d in about['doses'])} of the median norm with at most 10 points more "
        f"incoherence than the same model at dose 0. {look.plain(about['judge']['title'])}. Bars: 95 % bootstrap over prompts."
    )


def _picture(rows: pd.DataFrame, own: pd.DataFrame, way: str, about: dict) -> None:
    drawn = pd.DataFrame(
        [
            {
                "name": _name(r), "effect": 100 * r[f"{way}_effect"], "low": 100 * r[f"{way}_low"], "high": 100 * r[f"{way}_high"], "dose": r[f"{way}_dose"],
                "kind": "mean difference" if r["kind"] == "meandiff" else "persona latent" if r["is_persona"] else "not shown causal",
            }
            for _, r in own.iterrows()
        ]
    )  # fmt: skip
    bands = []
    for kind, title in (("random", "single random directions"), ("alive", "single latents drawn at random")):
        found = rows[(rows["kind"] == kind) & rows[f"{way}_effect"].notna()][f"{way}_effect"]
        if len(found):
            bands.append({"kind": title, "low": 100 * found.min(), "high": 100 * found.max()})
    n_random, n_alive = about["n_random"], about["n_alive"]
    keep.chart(
        keep.drawn(effects,
            drawn, pd.DataFrame(bands, columns=["kind", "low", "high"]), title=_WAYS[way],
            subtitle=f"{KEY}; grey: {n_random} random directions, {n_alive} random latents{_left_out(drawn)}",
        ),
        key=f"causal_{way}", table=drawn, alt=f"{_WAYS[way]}: effect of each candidate with interval, beside the controls. The table below has the numbers.",
    )  # fmt: skip


def _left_out(drawn: pd.DataFrame) -> str:
    """How many have no point, and why."""
    n = int(drawn["effect"].isna().sum())
    return f"; without a point: {n} that no dose leaves coherent" if n else ""


def _name(row: pd.Series) -> str:
    if row["kind"] == "meandiff":
        return "Mean difference"
    return shorten(f"{'−' if row['kind'] == 'decrease' else ''}{int(row['latent'])} {row['label']}", 48, placeholder=" …")


def _power(about: dict) -> None:
    said = [
        f"{100 * p['smallest_effect']:.0f} points when {'added to the base' if way == 'raise' else 'taken from the organism'}"
        for way, p in about["power"].items()
    ]
    with st.popover("How strong is this test?", icon=":material/help:"):
        st.markdown(
            f"With these prompts it would find a mean effect of {' and of '.join(said) or 'nothing: no dose stayed coherent'} in 80 % of runs; smaller effects can be there "
            "and stay unseen. A candidate is called a persona latent where it beats random directions of equal norm and latents drawn at random, both ways: sign-flip test over "
            "prompts, the larger p-value, Holm's correction over the candidates, 5 %. An incoherent answer of a candidate counts as unchanged; one of a control is left out. Candidates "
            "are ordered by the smaller of their two effects on the prompts that doses were chosen on. A minus marks latents that fall in the organism, pushed the other way: up "
            "against the organism, as the way back; they are held against random directions alone."
        )


def _table(rows: pd.DataFrame, organism: str, choice: sae_pick.Choice) -> None:
    kinds = {"meandiff": "mean difference", "increase": "rises", "decrease": "falls", "random": "random direction", "alive": "latent at random"}
    shown = pd.DataFrame(
        {
            "Latent": ["" if pd.isna(latent) else sae_pick.latent_link(int(latent), choice.sae) for latent in rows["latent"]], "Label": rows["label"],
            "Kind": rows["kind"].map(kinds),
            **{
                f"{title}{what}": rows[f"{way}_{column}"] * factor
                for way, title in (("raise", "Raises "), ("lower", "Lowers "))
                for what, column, factor in (("at dose", "dose", 1), ("by", "effect", 100), ("from", "low", 100), ("to", "high", 100), ("random", "random_effect", 100), ("incoherent, %", "incoherent_rate", 100))
            },
            "p": rows["p"], "Persona latent": rows["is_persona"],
        }
    )  # fmt: skip
    number = st.column_config.NumberColumn
    st.dataframe(
        shown, hide_index=True, alt="Candidates and controls: dose, effect with interval, the random directions' effect, both ways, and the corrected p-value",
        column_config={"Latent": sae_pick.LINK_COLUMN, "Label": st.column_config.TextColumn(width="medium"), "p": number(format="%.4f", help="Corrected, both ways together.")}
        | {c: number(format="%+.2f" if c.endswith("dose") else "%+.1f") for c in shown.columns if c.startswith(("Raises", "Lowers"))},
    )  # fmt: skip
    look.csv_button(rows, f"causal_{organism}_{choice.sae.key}.csv", label="These rows as CSV")


def _answers(run: judged.Run, rows: pd.DataFrame, about: dict) -> None:
    """The answers behind a number."""
    st.subheader("The answers behind it")
    titles = {about["base"]: "Base, dose 0", about["organism"]: "Organism, dose 0"}
    for _, row in rows[rows["kind"].isin(["meandiff", "increase", "decrease"])].iterrows():
        for way, source in (("raise", "base"), ("lower", "organism")):
            if isinstance(row[f"{way}_variant"], str):
                titles[row[f"{way}_variant"]] = f"{_name(row)}: {source} at {row[f'{way}_dose']:+g}"
    chosen = select("Variant", list(titles), key="behind", titles=titles, what="the variant", width=480)
    look.banner()
    judged_answers.show(run, Thresholds(), prefix="causal_", variant=chosen)
