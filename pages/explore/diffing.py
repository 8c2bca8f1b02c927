"""Model diffing: which latents moved most from base to organism?"""

from textwrap import shorten

import pandas as pd
import streamlit as st

from backend.charts.latents import POINT, changes, scatter
from backend.errors import BackendError
from backend.studies import diffs
from pages.shared import answers, causal_view, keep, look, sae_card_view, sae_pick
from pages.shared.sae_pick import counted
from pages.shared.service import registry
from pages.shared.state import pick_page, select

PAGE = 50
N_DRAWN = 10
known = registry()


def rows_of(kept: diffs.Kept, order: diffs.Order, choice: sae_pick.Choice, *, start: int = 0, n: int = N_DRAWN, only: list[int] | None = None) -> pd.DataFrame:
    """Rows with their labels."""
    rows, _ = diffs.page(kept, order=order, start=start, n=n, only=only)
    latents = [r["latent"] for r in rows]
    labels, densities = choice.tables.labels(latents), choice.tables.densities(latents)
    return pd.DataFrame([r | {"label": labels[r["latent"]].text, "density": densities.get(r["latent"])} for r in rows])


def run_title(kept: diffs.Kept) -> str:
    """A run among others of the same organism and texts."""
    about = kept.manifest
    return f"{about['prompt_set']['name']}, {counted(about['n_prompts'], 'prompt')}, {counted(about['samples'], 'sample')}, {about['created'][:10]}"


def headline(up: pd.DataFrame, name: str) -> str:
    """What the picture says."""
    top = up.iloc[0]
    if top["low"] <= 0:
        return f"No latent rises clearly in {name}"
    clear = int((up["low"] > 0).sum())
    label = f" ({top['label']})" if top["label"] else ""
    return f"Latent {int(top['latent'])}{label} rises most in {name}: {top['change']:+.2f}" + (
        f"; all of the top {len(up)} are clear of 0" if clear == len(up) else ""
    )


def show_changes(kept: diffs.Kept) -> None:
    """Which latents rose and fell."""
    about = kept.manifest
    base_name, name = choice.base.title, answers.name_of(organism, known)[0]
    try:
        up, down = rows_of(kept, "increase", choice), rows_of(kept, "decrease", choice)
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        if command := getattr(fault, "command", ""):
            st.code(command, language=None, wrap_lines=True)
        return
    if warning := diffs.outdated(kept, choice.sae, known):
        st.warning(look.plain(warning))
    keep.source(kept.folder)
    st.markdown("#### " + look.plain(headline(up, name)))
    what = "both models read the same answers, half of them the base's" if texts == "same" else "each model reads its own answers"
    st.caption(
        f"{look.plain(name)} against {look.plain(base_name)}: mean activation over answer tokens, {counted(about['n_prompts'], 'prompt')} of {look.plain(about['prompt_set']['name'])}, {counted(about['n_texts'], 'answer')}, {counted(about['n_tokens'], 'token')}; {what}. "
        f"SAE {choice.sae.key}, layer {choice.sae.layer}, activations not normalised. The mean difference of the residual stream has norm {about['mean_difference_norm']:.1f}, "
        f"{100 * about['mean_difference_norm'] / about['residual_norm']:.1f} % of the base's median norm of {about['residual_norm']:.0f}. Bars: 95 % bootstrap over prompts."
    )
    drawn = pd.concat([up.assign(kind="increase"), down.assign(kind="decrease")]).drop_duplicates("latent")
    rest = pd.DataFrame(diffs.page(kept, order="active", n=600)[0])
    rest = rest[~rest["latent"].isin(drawn["latent"])].assign(kind="other", label="")
    left, right = st.columns([1.1, 1], gap="large")
    named = drawn.assign(name=[shorten(f"{int(r.latent)} {r.label}", 90, placeholder=" …") for r in drawn.itertuples()])
    with left:
        keep.chart(
            keep.drawn(changes, named, title="The ten largest increases and decreases", subtitle="organism less base, with 95 % interval"), key="changes", title=headline(up, name),
            alt=f"The ten latents that rise most and the ten that fall most in {name}, with intervals. The table below has the numbers.",
        )  # fmt: skip
    with right:
        event = keep.chart(
            keep.drawn(scatter, pd.concat([rest, drawn]), title="Base against organism", subtitle="the 600 most active and those on the left; square-root axes", base=base_name, organism=name),
            key=f"scatter_{kept.folder.name}", on_select="rerun", selection_mode=POINT, alt="Mean activation of latents under the organism against the base. The table below has the numbers.",
        )  # fmt: skip
    picked = [p.get("latent") for p in event.get("selection", {}).get(POINT, [])] if event else []
    if picked:
        st.page_link(
            "explore/latent.py", label=f"Latent {int(picked[0])} in the dictionary", icon=":material/search:",
            query_params={"sae": choice.sae.key, "latent": str(int(picked[0]))},
        )  # fmt: skip
    with st.popover("What this can and cannot say", icon=":material/help:"):
        st.markdown(
            "A latent that rises is a candidate, not a cause: whether it drives the behaviour is asked by steering along it. The interval covers the choice of prompts, not "
            "training seeds; with thousands of latents some pass 95 % by chance, so read the largest. An SAE trained on the base explains the organism less well where it "
            "changed most: see the SAE's card. A mean over tokens hides a latent that fires rarely and strongly."
        )

    st.subheader("All latents")
    one, two, three = st.columns([3, 1.4, 1], vertical_alignment="bottom")
    words = one.text_input("Search labels, examples and top tokens", key="q", bind="query-params", max_chars=100)
    orders = {
        "increase": "Largest increase",
        "decrease": "Largest decrease",
        "cosine": "Nearest to the mean difference",
        "active": "Most active in either",
        "latent": "Number",
    }
    with two:
        order = select("Order", list(orders), key="diff_order", titles=orders, what="the order")
    try:
        only = choice.tables.find(words) if words.strip() else None
        total = diffs.page(kept, only=only, n=1)[1]
        with three:
            page = pick_page(total, PAGE, key="diff_page")
        table = rows_of(kept, order, choice, start=(page - 1) * PAGE, n=PAGE, only=only)
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    number = st.column_config.NumberColumn
    if table.empty:
        st.info("No latent has these words in its label, examples or top tokens. Try fewer.")
    else:
        shown = pd.DataFrame(
            {
                "Latent": [sae_pick.latent_link(i, choice.sae) for i in table["latent"]], "Label": table["label"], "Active on": 100 * table["density"].astype(float), "Base": table["base_mean"],
                "Organism": table["organism_mean"], "Change": table["change"], "95 % from": table["low"], "to": table["high"], "Cosine": table["cosine"],
                "Rank": table["rank"],
            }
        )  # fmt: skip
        st.caption(f"{counted(total, 'latent')}. Cosine: of the decoder row with the mean difference of the residual stream. Rank: by increase.")
        st.dataframe(
            shown, hide_index=True, height=35 * (len(shown) + 1) + 3, alt="Latents with mean activation in base and organism, change and interval",
            column_config={
                "Latent": sae_pick.LINK_COLUMN, "Label": st.column_config.TextColumn(width="large"),
                "Active on": number(format="%.2f %%", width="small", help="Of the corpus' tokens. A label fits a latent's strongest tokens; one that is active on many does more."),
                **{c: number(format="%.3f", width="small") for c in ("Base", "Organism", "95 % from", "to")}, "Change": number(format="%+.3f", width="small"),
                "Cosine": number(format="%+.2f", width="small"), "Rank": number(format="%d", width="small"),
            },
        )  # fmt: skip
        look.csv_button(shown.assign(Latent=table["latent"]), f"diff_{organism}_{choice.sae.key}.csv", label="These rows as CSV")
    alike = {o: next((k for k in found if k.manifest["prompt_set"] == about["prompt_set"]), None) for (o, t), found in stored.items() if t == texts}
    named_vectors = {answers.name_of(o, known)[0]: one.mean_difference() for o, one in alike.items() if one is not None}
    if len(named_vectors) > 1:
        st.subheader("How alike are the organisms?")
        st.caption("Cosine between the mean differences of the residual stream, organism less base, after this layer, on the same prompts and kind of texts.")
        cosines = pd.DataFrame(
            [{"": a} | {b: float(x @ y / ((x @ x) ** 0.5 * (y @ y) ** 0.5)) for b, y in named_vectors.items()} for a, x in named_vectors.items()]
        )
        st.dataframe(
            cosines,
            hide_index=True,
            width="content",
            alt="Cosine between the organisms' mean differences",
            column_config={n: number(format="%.2f") for n in named_vectors},
        )
    st.caption(f"Run {kept.folder.name}, {about['created'][:10]}: {look.plain(about['command'])}")


st.title("Model diffing")
st.markdown("Which latents does an organism activate more, or less, than its base?")
with st.sidebar:
    choice = sae_pick.pick_sae(known)
    sae_card_view.show(choice.sae, known)
    stored = diffs.kept(choice.sae.key)
    compared = {organism for organism, _ in stored}
    organisms = sorted(compared, key=lambda o: (o not in choice.organisms, choice.organisms.index(o) if o in choice.organisms else 0, o))
    if organisms:
        organism = select("Organism", organisms, key="organism", titles={o: answers.name_of(o, known)[0] for o in organisms}, what="the organism")
        kinds = [texts for o, texts in stored if o == organism]
        titles = {"same": "The same texts through both", "own": "Each model's own answers"}
        texts = select("Answers", sorted(kinds, reverse=True), key="texts", titles=titles, what="the kind of texts")
        runs = {one.folder.name: one for one in reversed(stored[organism, texts])}  # one's own in place of a shipped one of its name
        runs = dict(reversed(runs.items()))
        run = next(iter(runs))
        if len(runs) > 1:
            run = select("Run", list(runs), key="run", titles={name: run_title(one) for name, one in runs.items()}, what="the run")
if not organisms:
    st.info("No organism has been compared with its base on this SAE yet. In a shell:")
    st.code(sae_pick.diff_command(choice, known), language=None, wrap_lines=True)
    st.stop()

moved, causes = st.tabs(["What changed", "What is causal"], key="tab", on_change="rerun", bind="query-params")
if moved.open:
    with moved:
        show_changes(runs[run])
if causes.open:
    with causes:
        causal_view.show(organism, choice, known)
