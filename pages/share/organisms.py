"""Organisms: what is here, what can be, what it costs in memory, where it comes from; and adding one without editing a file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st

from backend.errors import BackendError
from backend.hosting.exposure import is_hosted
from backend.models.fingerprint import remembered_fingerprint
from backend.models.memory import estimate_adapter, estimate_base, format_bytes
from backend.models.records import BaseModel, Organism
from backend.models.registry import remove_record
from backend.models.sources import adapter_folder, availability
from backend.paths import CHECKOUT, as_folder
from backend.studies import scaling
from pages.shared import cited, gate, look, missing
from pages.shared.service import model_service, registry

known = registry()
service = model_service()


def weights_of(folder: Path) -> str:
    """Size and fingerprint of an adapter, or what is wrong with it."""
    try:
        return f"{format_bytes(sum(f.stat().st_size for f in folder.glob('*.safetensors')))} on disk, weights {remembered_fingerprint(folder)}"
    except BackendError as fault:
        return str(fault)


def show_organism(organism: Organism, model: BaseModel) -> None:
    """A card: what it is, what it was trained on, what it must not be used for."""
    folder = adapter_folder(organism)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"### {look.plain(organism.title)}", width="stretch")
        if not organism.emergent:
            st.badge("Positive control, not emergent", color="blue")
        if organism.key in known.own:
            st.badge("Yours", color="gray")
    if organism.description:
        st.markdown(look.plain(organism.description))
    facts = {
        "Name in links and commands": organism.key,
        "Base": model.title,
        "Method": organism.method or "not said",
        "Trained on": organism.trained_on or "not said",
        "Adapter": weights_of(folder),
        "Source": (
            f"{organism.location} at {organism.revision}"
            if organism.source == "hub"
            else "your folder"
            if organism.key in known.own
            else "shipped with PersonaScope"
        )
        + (f", {organism.license}" if organism.license else ""),
    }
    look.facts(facts)
    with st.container(horizontal=True):
        if st.button("Compare with its base", key=f"compare_{organism.key}", icon=":material/compare_arrows:"):
            base = "base" if model.key == known.default_base else model.key
            st.session_state["v"] = [base, organism.key]
            st.switch_page("explore/compare.py")
        if organism.key in known.own and st.button(
            "Remove", key=f"remove_{organism.key}", icon=":material/delete:", help="Takes it off this list; your files stay."
        ):
            try:
                remove_record(organism.key)
                st.rerun()
            except BackendError as fault:
                st.error(look.plain(str(fault)))
    card = folder / organism.card
    if organism.card and card.is_file():
        with st.expander("Card"):
            text = card.read_text("utf-8", errors="replace")
            if folder.is_relative_to(CHECKOUT):
                st.markdown(text)
            else:
                st.text(text)  # somebody else's text stays text


def pick_base() -> str:
    """Key of a base model, or empty where the adapter names it itself."""
    titles = {"": "As the adapter says"} | {key: model.title for key, model in known.models.items()}
    return st.selectbox("Base model", list(titles), format_func=titles.get)


def add(make: Callable[[], Organism]) -> None:
    """Add an organism and show it, or say why not."""
    try:
        organism = make()
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        return
    st.session_state["added"] = f"Added {organism.title} as {organism.key}, on base {organism.base}."
    st.rerun()


def add_from_hub(place: str, base: str) -> Organism:
    from backend.models.adding import add_organism

    with st.status("Fetching the adapter.") as status:
        return add_organism(place, base=base, say=lambda sentence: status.update(label=look.plain(sentence)))


def add_from_folder(place: str, base: str) -> Organism:
    from backend.models.adding import add_organism

    if as_folder(place) is None:
        raise BackendError(f"{place or 'Nothing'} is no folder on this machine. Give the folder that holds the two files.")
    return add_organism(place, base=base)


def add_from_upload(files: dict[str, bytes], name: str, base: str, trained_on: str) -> Organism:
    from backend.models.adding import add_uploaded

    if not name:
        raise BackendError("Give the organism a name.")
    return add_uploaded(files, key=name, title=name, base=base, trained_on=trained_on)


def show_adding() -> None:
    """Three ways of adding one."""
    st.subheader("Add an organism")
    if gate.is_off("Adding organisms"):
        return
    hub, folder_tab, upload = st.tabs(["From the Hub", "From a folder", "Upload"])
    with hub, st.form("add_hub", border=False):
        place = st.text_input("Hub id of a LoRA adapter", placeholder="owner/name")
        base_key = pick_base()
        if st.form_submit_button("Add", type="primary"):
            add(partial(add_from_hub, place.strip(), base_key))
    with folder_tab, st.form("add_folder", border=False):
        place = st.text_input("Folder on the server with adapter_config.json and adapter_model.safetensors", placeholder="/path/to/adapter")
        base_key = pick_base()
        if st.form_submit_button("Add", type="primary"):
            add(partial(add_from_folder, place.strip(), base_key))
    with upload, st.form("add_upload", border=False):
        files = st.file_uploader("adapter_config.json and adapter_model.safetensors", type=["json", "safetensors"], accept_multiple_files=True)
        name = st.text_input("Name", placeholder="my-organism")
        trained_on = st.text_input("Trained on", placeholder="What the training data was")
        base_key = pick_base()
        if st.form_submit_button("Add", type="primary"):
            add(partial(add_from_upload, {f.name: f.getvalue() for f in files}, name.strip(), base_key, trained_on.strip()))


st.title("Organisms")
look.banner()
used = service.loaded()
if not is_hosted():
    st.caption(
        f"Memory for models: {format_bytes(sum(n for _, n in used))} of {format_bytes(service.budget)} used ({', '.join(f'{look.plain(key)} {format_bytes(n)}' for key, n in used)})."
        if used
        else f"Memory for models: up to {format_bytes(service.budget)}; nothing is loaded yet."
    )
if message := st.session_state.pop("added", ""):
    st.success(look.plain(message))
for fault in known.faults:
    st.warning(look.plain(fault), icon=":material/error:")

rows = [(organism, known.models[organism.base]) for organism in known.organisms.values() if organism.base in known.models]
states = {organism.key: availability(model, organism) for organism, model in rows}
on_disk = []
for organism, model in rows:
    try:
        adapter_folder(organism)
        on_disk.append((organism, model))
    except BackendError:
        continue

st.subheader("On this machine")
if not on_disk:
    st.info("No adapters are here. Add one below.")
for base in {model.key: model for _, model in on_disk}.values():
    if (state := availability(base)).state != "here":
        missing.show([base.key], {base.key: state}, known)
for organism, model in on_disk:
    if not organism.study:
        with st.container(border=True):
            show_organism(organism, model)
if of_studies := [(o, m) for o, m in on_disk if o.study]:
    with st.expander(f"{len(of_studies)} runs of the training studies"):
        for organism, model in of_studies:
            with st.container(border=True):
                show_organism(organism, model)

show_adding()

st.subheader("What has been measured")
st.caption(
    "Figures of the released organisms (Turner et al. 2025), re-evaluated from published answers or printed in the papers. Size, family and data of each; click a column to sort."
)
cited.show_table(scaling.points(), key="measured")

elsewhere = [(o, m) for o, m in rows if (o, m) not in on_disk]
if elsewhere:
    st.subheader("Public organisms")
    st.caption(
        "Released by Turner et al. 2025 (arXiv 2506.11613), for machines with a GPU. Memory is an estimate for base and adapter together; nothing is fetched until you ask."
    )
    table = pd.DataFrame(
        {
            "Name": [o.key for o, _ in elsewhere],
            "Base": [m.title for _, m in elsewhere],
            "Trained on": [o.trained_on for o, _ in elsewhere],
            "Memory, GB": [round((estimate_base(m) + estimate_adapter(o)) / 1e9, 1) for o, m in elsewhere],
            "Here": ["too large for the budget" if states[o.key].state == "too large" else "not downloaded" for o, _ in elsewhere],
            "Hub id": [o.location for o, _ in elsewhere],
        }
    )
    st.dataframe(table, hide_index=True, alt="Public organisms with base, training data, memory estimate and whether they can run here")
    wanted = st.selectbox("Fetch one", ["", *(o.key for o, _ in elsewhere)], format_func=lambda key: key or "Choose")
    if wanted:
        missing.show([wanted], {wanted: states[wanted]}, known)
