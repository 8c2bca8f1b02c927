"""Where answers on screen come from: live just now, or replayed from the store, with date and weights."""

from datetime import datetime

import streamlit as st

from backend.errors import BackendError
from backend.generation.jobs import RowProgress
from backend.models.fingerprint import remembered_fingerprint
from backend.models.registry import Registry
from backend.models.sources import adapter_folder, base_folder
from backend.studies.compare import Turn
from pages.shared import look


def label(turn: Turn, progress: dict[str, RowProgress], known: Registry, can_answer: bool) -> None:
    """One line under a turn's answers; a warning where today's weights are others."""
    stored = [turn.stored[key] for key in turn.keys if key in turn.stored]
    if not stored:
        return
    live = [s for s in stored if s.rollout.key in progress and progress[s.rollout.key].rollout is not None]
    weights = {}
    changed = []
    for item in stored:
        r = item.rollout
        weights[r.base_model] = r.base_fingerprint
        if r.adapter_fingerprint:
            weights[r.variant] = r.adapter_fingerprint
        if _current(r.variant, known) not in ("", r.adapter_fingerprint or r.base_fingerprint) and r.variant not in changed:
            changed.append(r.variant)
    made = ", ".join(f"{name} {value}" for name, value in weights.items())
    how = " and ".join(sorted({f"{s.rollout.decoder} decoder, {s.rollout.dtype}" for s in stored}))
    if len(live) == len(stored):
        head = "Live: answered just now and kept in the store"
    else:
        head = f"Replay from the store: answered {_date(max(s.created for s in stored))}" + (
            "" if can_answer else ", because the models are not on this machine"
        )
    st.caption(look.plain(f"{head}. Weights: {made}. {how.capitalize()}."))
    if changed:
        st.warning(look.plain(f"These answers were made with other weights of {', '.join(changed)} than those here now. Answer again to see today's."))


def _current(variant: str, known: Registry) -> str:
    """Fingerprint of the variant's weights on this machine; empty if they are not here."""
    try:
        model, organism = known.resolve(variant)
        return remembered_fingerprint(adapter_folder(organism) if organism else base_folder(model))
    except BackendError:
        return ""


def _date(created: str) -> str:
    try:
        return datetime.fromisoformat(created).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return "at an unknown time"
