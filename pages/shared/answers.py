"""Answers side by side: cards in a grid that folds on narrow screens, and the difference of two texts."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from backend.charts.roles import ROLES, RoleName
from backend.errors import BackendError
from backend.generation.jobs import RowProgress
from backend.generation.records import Rollout
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry
from backend.models.variants import parse
from backend.saes.records import load_saes
from pages.shared.look import escape

ENDS = {
    "stop": "ended",
    "length": "cut at the length asked for",
    "context": "cut: the context is full",
    "stopped": "stopped",
    "overflow": "no answer: its numbers were not finite",
}

_NO_TEXT = {"overflow": "No answer: the model's numbers were no longer finite."}


@dataclass(frozen=True, slots=True)
class Card:
    """One answer, live or stored, ready to be shown."""

    variant: str
    title: str
    role: RoleName
    note: str
    """Beside the name, such as "positive control"."""

    text: str
    n_tokens: int
    tokens_per_second: float
    finish_reason: str | None
    """None while it is being written."""

    divergence: float | None
    begun: bool = True
    verdict: str = ""
    """What the judge says of it, in words."""

    is_misaligned: bool = False
    base_model: str = ""
    rollout: str = ""
    """Key of the answer in the store; empty until it is there."""


def card_of_rollout(rollout: Rollout, registry: Registry) -> Card:
    if rollout.variant == BASE_ALIAS and rollout.base_model in registry.models:
        title, role, note = registry.models[rollout.base_model].title, "base", "base"  # of that day, not of today's default
    else:
        title, role, note = name_of(rollout.variant, registry)
    return Card(
        rollout.variant, title, role, note, rollout.answer, len(rollout.answer_ids), rollout.tokens_per_second, rollout.finish_reason, rollout.divergence,
        base_model=rollout.base_model, rollout=rollout.key,
    )  # fmt: skip


def card_of_progress(progress: RowProgress, registry: Registry) -> Card:
    title, role, note = name_of(progress.row.variant, registry)
    divergence = progress.rollout.divergence if progress.rollout else None
    return Card(
        progress.row.variant, title, role, note, progress.text, len(progress.answer_ids), progress.tokens_per_second, progress.finish_reason, divergence,
        begun=progress.started is not None, base_model=progress.base.key,
    )  # fmt: skip


def name_of(variant: str, registry: Registry) -> tuple[str, RoleName, str]:
    """Title, role and note of a variant."""
    try:
        model, organism = registry.resolve(variant)
    except BackendError:
        return variant, "organism", "no longer registered"
    if changes := parse(variant).changes:
        return f"{organism.title if organism else model.title} + {' + '.join(map(str, changes))}", "steered", "steered"
    if organism is None:
        return model.title, "base", "base"
    return organism.title, "organism", "organism" if organism.emergent else "positive control, trained directly"


def show_grid(cards: list[Card]) -> None:
    """Cards side by side; texts are text, whatever they hold."""
    saes: dict[str, str] = {}
    for record in load_saes()[0].values():
        saes.setdefault(record.base, record.key)
    st.html(f'<div class="ps-grid">{"".join(_card_html(c, saes.get(c.base_model, "")) for c in cards)}</div>')


def kept_rows(question: str, cards: Sequence[Card]) -> pd.DataFrame:
    """Cards as a finding keeps them."""
    rows = [
        {"Variant": c.title, "Prompt": question, "Answer": c.text, "Verdict": c.verdict, "Name": c.variant, "Against base, nats/token": c.divergence}
        for c in cards
    ]
    return pd.DataFrame(rows)


def show_prompt(label: str, text: str) -> None:
    st.html(f'<div class="ps-prompt"><div class="ps-label">{escape(label)}</div><div class="ps-text" dir="auto">{escape(text)}</div></div>')


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with the variants' answers, cut short; the link leads to all of it."""

    label: str
    prompt: str
    cards: list[Card]
    link: str


def show_examples(examples: list[Example]) -> None:
    """Examples beside each other, each with its answers under each other."""
    columns = []
    for example in examples:
        said = "".join(
            f'<div class="ps-said ps-role-{c.role}"><div class="ps-name"><span class="ps-symbol" aria-hidden="true">{ROLES[c.role].symbol}</span>'
            f'<span>{escape(c.title)}</span></div><div class="ps-text ps-clamp" dir="auto">{escape(c.text)}</div></div>'
            for c in example.cards
        )
        columns.append(
            f'<div class="ps-card"><div class="ps-label">{escape(example.label)}</div><div class="ps-text ps-asked" dir="auto">{escape(example.prompt)}</div>{said}'
            f'<a class="ps-more" href="{escape(example.link)}" target="_self">All answers to this</a></div>'
        )
    st.html(f'<div class="ps-grid">{"".join(columns)}</div>')


def show_difference(left: Card, right: Card) -> None:
    """The right answer with what the left one has struck out and what it lacks underlined, word by word."""
    pieces = []
    for kind, words in word_difference(left.text, right.text):
        text = escape(words)
        pieces.append(f"<del>{text}</del>" if kind == "left" else f"<ins>{text}</ins>" if kind == "right" else text)
    share = difflib.SequenceMatcher(None, _words(left.text), _words(right.text), autojunk=False).ratio()
    st.html(
        f'<div class="ps-card ps-role-{right.role}"><div class="ps-name">{escape(left.title)} → {escape(right.title)}</div>'
        f'<div class="ps-meta"><del>struck out</del>: only {escape(left.title)} · <ins>underlined</ins>: only {escape(right.title)} · {share:.0%} of words shared in order</div>'
        f'<div class="ps-text" dir="auto">{"".join(pieces)}</div></div>'
    )


def word_difference(left: str, right: str) -> list[tuple[str, str]]:
    """Runs of words as ``("both" | "left" | "right", text)``; the both and right runs joined give ``right``."""
    a, b = _words(left), _words(right)
    runs = []
    for operation, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if operation == "equal":
            runs.append(("both", "".join(b[b0:b1])))
            continue
        if a1 > a0:
            runs.append(("left", "".join(a[a0:a1])))
        if b1 > b0:
            runs.append(("right", "".join(b[b0:b1])))
    return runs


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _card_html(card: Card, sae: str) -> str:
    role = ROLES[card.role]
    live = card.finish_reason is None
    if card.text or card.finish_reason == "stop":
        body, extra = escape(card.text) or "(an empty answer)", " ps-caret" if live else "" if card.text else " ps-empty"
    else:
        body, extra = (
            ("Reading the prompt…" if card.begun else "Waiting…") if live else _NO_TEXT.get(card.finish_reason, "Stopped before the first word."),
            " ps-empty",
        )
    parts = [f"{card.n_tokens} tokens"]
    if card.tokens_per_second:
        parts.append(f"{card.tokens_per_second:.1f} tokens/s")
    if card.finish_reason:
        parts.append(ENDS[card.finish_reason])
    if card.divergence is not None and card.role != "base":
        parts.append(f"{card.divergence:+.2f} nats/token against base")
    said = f'<div class="ps-verdict{" ps-bad" if card.is_misaligned else ""}">{escape(card.verdict)}</div>' if card.verdict else ""
    query = urlencode({"sae": sae, "rollout": card.rollout} | ({} if card.role == "base" else {"organism": card.variant}))
    more = f'<a class="ps-more" href="/latents?{escape(query)}" target="_self">Latents on this answer</a>' if sae and card.rollout and card.text else ""
    return (
        f'<div class="ps-card ps-role-{card.role}" data-variant="{escape(card.variant)}"><div class="ps-name"><span class="ps-symbol" aria-hidden="true">{role.symbol}</span>'
        f'<span>{escape(card.title)}</span><span class="ps-role">{escape(card.note)}</span></div>'
        f'<div class="ps-text{extra}" dir="auto">{body}</div>{said}<div class="ps-meta">{escape(" · ".join(parts))}</div>{more}</div>'
    )
