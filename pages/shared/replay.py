"""Where answers on screen come from: live just now, or replayed from the store, with date and weights."""

from datetime import datetime

import streamlit as st

from backend.generation.jobs import RowProgress
from backend.models.registry import Registry
from backend.models.variants import parse
from backend.studies import compare
from pages.shared import look

_MOST_NAMED = 3  # steered variants whose mark is printed; a ladder's would be lines of it


def label(turn: compare.Turn, progress: dict[str, RowProgress], known: Registry, can_answer: bool) -> None:
    """One line under a turn's answers; a warning where today's weights are others."""
    stored = [turn.stored[key] for key in turn.keys if key in turn.stored]
    if not stored:
        return
    live = [s for s in stored if s.rollout.key in progress and progress[s.rollout.key].rollout is not None]
    weights: dict[str, str] = {}
    steering: dict[str, str] = {}
    changed: list[str] = []
    for item in stored:
        r = item.rollout
        weights[r.base_model] = r.base_fingerprint
        if r.adapter_fingerprint:
            weights[parse(r.variant).source] = r.adapter_fingerprint
        if r.steering:
            steering[r.variant] = r.steering
        today = compare.current_weights(r.variant, known)
        if today is not None and today != r.made_by and r.variant not in changed:
            changed.append(r.variant)
    made = ", ".join(f"{name} {value}" for name, value in (weights | (steering if len(steering) <= _MOST_NAMED else {})).items())
    how = " and ".join(sorted({f"{s.rollout.decoder} decoder, {s.rollout.dtype}" for s in stored}))
    when = _date(max(s.created for s in stored))
    if len(live) == len(stored):
        head = f"Live: answered {when} and kept in the store"
    else:
        head = f"Replay from the store: answered {when}" + ("" if can_answer else "; these models cannot answer here now")
    st.caption(look.plain(f"{head}. Weights: {made}. {how.capitalize()}."))
    if changed:
        st.warning(
            look.plain(f"These answers were made with other weights or vectors of {', '.join(changed)} than those here now. Answer again to see today's.")
        )


def _date(created: str) -> str:
    try:
        return datetime.fromisoformat(created).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return "at an unknown time"
