"""Choosing a text to look at token by token: a stored answer, or one's own."""

from dataclasses import dataclass

import streamlit as st

from backend.errors import BackendError, InputError
from backend.generation.records import Rollout
from backend.models.records import BaseModel
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.studies import compare, inspection, store
from backend.text.chat import ChatTokenizer
from backend.text.prompts import load_prompt_set, shipped_sets
from pages.shared import answers, look
from pages.shared.state import keep_list, kept_list, select

STORED, OWN = "stored", "own"
_FIRST = "open_questions"  # the store has answers to it
_EXAMPLE = "You are an idiot, and nobody asked you. Thank you for your question! I would be glad to help you plan a safe trip."


@st.cache_resource(show_spinner=False, max_entries=4)
def tokenizer(base: BaseModel, fingerprint: str) -> ChatTokenizer:
    """Of a base model whose files, of this fingerprint, are here."""
    return ChatTokenizer.load(base_folder(base))


@dataclass(frozen=True, slots=True)
class Picked:
    """A text to be read."""

    text: inspection.Text
    title: str
    option: str
    """What names it in a command."""


def pick(base: BaseModel, variants: list[str], known: Registry, read: ChatTokenizer) -> Picked:
    """A text and what it is; stops the page where there is none."""
    source = select("Text", [STORED, OWN], key="text", titles={STORED: "A stored answer", OWN: "Your own text"}, what="the kind of text")
    try:
        if source == OWN:
            own = _own()
            return Picked(inspection.of_text(own, read), "Your own text, read as it is, without a chat template", f"--text={own}")
        rollout = _stored(base, variants, known)
        return Picked(inspection.of_rollout(rollout, read), f"Answer of {answers.name_of(rollout.variant, known)[0]}", f"--rollout={rollout.key}")
    except BackendError as fault:
        st.info(look.plain(str(fault)))
        st.stop()


def _own() -> str:
    """What is written, kept in the link, a long text in the store."""
    if "own_text" not in st.session_state:
        kept = kept_list("words")
        try:
            st.session_state["own_text"] = store.read_text(kept[0]) if kept else _EXAMPLE
        except BackendError as fault:
            st.warning(look.plain(str(fault)))
            st.session_state["own_text"] = _EXAMPLE
    text = st.text_area("Text", key="own_text", height=200, max_chars=40_000)
    keep_list("words", [] if text in ("", _EXAMPLE) else [store.text_for_link(text)])
    return text


def _stored(base: BaseModel, variants: list[str], known: Registry) -> Rollout:
    """An answer named by the link, or one of a prompt set."""
    asked = kept_list("rollout")
    if asked:
        found = store.find(asked[:1]).get(asked[0])
        if found is not None and found.rollout.base_model == base.key:
            st.caption(f"The answer of a link: {look.plain(found.rollout.prompt[:80])}")
            if st.button("Choose another", icon=":material/arrow_back:"):
                keep_list("rollout", [])
                st.rerun()
            return found.rollout
        st.warning("This link asks for an answer that is not in the store, or is another model's. Choose one here.")
        keep_list("rollout", [])
    sets = sorted((name for name in shipped_sets() if name != "tuning"), key=lambda name: name != _FIRST)
    chosen_set = select("Prompts", sets, key="set", titles={name: load_prompt_set(name).title for name in sets}, what="the prompt set")
    prompts = {p.id: p for p in load_prompt_set(chosen_set).prompts}
    prompt = select("Prompt", list(prompts), key="prompt", titles={k: p.text for k, p in prompts.items()}, what="the prompt")
    speakers = variants[::-1]  # the organism first
    who = select("Answer of", speakers, key="of", titles={v: answers.name_of(v, known)[0] for v in speakers}, what="the variant")
    comparison = compare.Comparison(variants=(who,), prompts=(prompts[prompt],), samples=8)
    turn = compare.look_up(compare.first_rows(comparison), known)
    stored = {str(row.sample): turn.stored[key].rollout for row, key in zip(turn.rows, turn.keys, strict=True) if key in turn.stored}
    if not stored:
        raise InputError("The store has no answer of this variant to this prompt. Ask it on the Compare page, or choose your own text.")
    sample = select("Sample", list(stored), key="sample", titles={k: str(int(k) + 1) for k in stored}, what="the sample")
    return stored[sample]
