"""An autoencoder's card: how good it is, on what, and what it was trained on."""

import streamlit as st

from backend.models.registry import Registry
from backend.saes.records import SaeRecord
from backend.saes.tables import read_card
from pages.shared import answers, look


def show(record: SaeRecord, known: Registry) -> None:
    """In a popover; where nothing was measured, that."""
    with st.popover("How good is this SAE?", icon=":material/straighten:", width="stretch"):
        card = read_card(record)
        if record.description:
            st.markdown(look.plain(record.description))
        if card is None:
            st.caption("It has not been measured here. Run:")
            st.code(f"python -m backend sae measure --sae {record.key}", language=None, wrap_lines=True)
            return
        st.markdown("**Variance unexplained** on answers that it has not seen, each read by the model that wrote it")
        look.facts(
            {
                answers.name_of(variant, known)[
                    0
                ]: f"{100 * f['fvu']:.0f} % ({100 * f['fvu_low']:.0f} to {100 * f['fvu_high']:.0f}), L0 {f['l0']:.0f}, {f['n_tokens']:,} tokens"
                for variant, f in card["fit"].items()
            }
        )
        loss = card["loss"]
        st.markdown(
            f"**Loss** of the base on its answers, nats a token: {loss['loss']:.2f}; with the reconstruction in place {loss['loss_with_sae']:.2f}; with the mean in place "
            f"{loss['loss_with_mean']:.2f}. Recovered: **{100 * loss['loss_recovered']:.0f} %** (n = {loss['n_tokens']:,} tokens)."
        )
        if (training := card.get("training")) and {"texts", "n_tokens", "epochs", "k", "seed", "command"} <= set(training):
            texts = ", ".join(f"{name} {n:,}" for name, n in training["texts"].items())
            st.markdown(
                f"**Trained** on {training['n_tokens']:,} tokens, {training['epochs']} epochs, BatchTopK with k = {training['k']}, seed {training['seed']}. "
                f"Texts by kind: {look.plain(texts)}."
            )
            st.code(training["command"], language=None, wrap_lines=True)
        st.caption("In brackets: 95 % bootstrap over texts. L0: active latents a token, mean. What an SAE leaves unexplained, it cannot show.")
