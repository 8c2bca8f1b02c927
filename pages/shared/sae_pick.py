"""Choosing base, organism and autoencoder: the same on every page that shows latents."""

from dataclasses import dataclass
from urllib.parse import quote

import streamlit as st

from backend.errors import BackendError
from backend.models.records import BaseModel
from backend.models.registry import Registry
from backend.models.variants import parse
from backend.saes.records import SaeRecord, load_saes
from backend.saes.tables import Tables
from backend.steering.plan import plan
from pages.shared import look
from pages.shared.state import keep_list, select


@dataclass(frozen=True, slots=True)
class Choice:
    """What is looked at."""

    base: BaseModel
    sae: SaeRecord
    organisms: list[str]
    """Of this base model."""

    @property
    def tables(self) -> Tables:
        return Tables.of(self.sae)


def pick_sae(known: Registry) -> Choice:
    """A select box over autoencoders; stops the page where there is none."""
    records, faults = load_saes()
    usable = {key: r for key, r in records.items() if r.base in known.models}
    for fault in faults:
        st.warning(look.plain(fault))
    if not usable:
        st.info("No sparse autoencoder is known for the models here. Add one: python -m backend sae add FOLDER")
        st.stop()
    ordered = sorted(usable, key=lambda key: usable[key].base != known.default_base)
    titles = {key: f"{usable[key].title}" for key in ordered}
    key = select(
        "SAE",
        ordered,
        key="sae",
        titles=titles,
        what="the SAE",
        help="A sparse autoencoder belongs to one base model and one layer.",
        on_change=_forget_latents,
    )
    record = usable[key]
    st.caption(f"{look.plain(known.models[record.base].title)}, residual stream after layer {record.layer}, {record.n_latents:,} latents")
    organisms = [o.key for o in known.organisms.values() if o.base == record.base]
    return Choice(known.models[record.base], record, organisms)


def steered_in_link(base: BaseModel, known: Registry) -> list[str]:
    """The steered variant that a link asks for in an organism's place; none if it asks for none, or for one that cannot be."""
    asked = chosen_organism()
    try:
        said = parse(asked)
        if not said.changes or known.resolve(asked)[0] != base:
            return []
        plan(said, base)
    except BackendError:
        return []
    return [asked]


def diff_command(choice: Choice, known: Registry) -> str:
    """The command that compares an organism with the base on the autoencoder chosen."""
    base = "" if choice.base.key == known.default_base else f" --base {choice.base.key}"
    return f"python -m backend diff{base} --organism {(choice.organisms or ['ORGANISM'])[0]} --sae {choice.sae.key}"


def _forget_latents() -> None:
    """A number means nothing in another autoencoder."""
    keep_list("latent", [])


def latent_link(latent: int, sae: SaeRecord) -> str:
    """The address of a latent's page, for a column drawn as ``LINK_COLUMN``."""
    organism = chosen_organism()
    return f"/latent?sae={sae.key}&latent={latent}" + (f"&organism={quote(organism, safe='')}" if organism else "")


def chosen_organism() -> str:
    """That of the link, else the one chosen last on any page; empty where there is none."""
    return st.query_params.get("organism") or st.session_state.get("kept_organism", "")


LINK_COLUMN = st.column_config.LinkColumn(display_text=r"latent=(\d+)", width="small")


def name_of(latent: int, sae: SaeRecord) -> str:
    """A latent with its autoencoder, without which its number means nothing."""
    return f"Latent {latent} of SAE {sae.key}, layer {sae.layer}"


def counted(n: int, what: str) -> str:
    """Such as "1 token" and "2,345 tokens"."""
    return f"{n:,} {what}{'s' * (n != 1)}"
