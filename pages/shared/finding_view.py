"""A kept finding on screen: its pictures as they were, its numbers, and where they came from."""

from typing import Any

import pandas as pd
import streamlit as st

from backend.reports import sources, store
from backend.reports.facts import facts, title_of
from backend.reports.numbers import Held
from backend.reports.records import Finding, Item
from backend.reports.tables import csv_text, table_of
from pages.shared import look, token_view

_SHOWN_ANSWERS = 20
MOST_DIFFERENT = 500


def show(finding: Finding, *, key: str, with_tables: bool = True) -> None:
    """All that was kept, in the page's order."""
    for number, item in enumerate(finding.items):
        show_item(item, key=f"{key}_{number}", with_table=with_tables)


def show_item(item: Item, *, key: str, with_table: bool = True, large: bool = False) -> None:
    """One picture, token view or list of answers; ``large`` without what a screen of its own says above it."""
    if item.title and not large and item.kind != "tokens":
        look.say(item.title, item.text)
    if item.kind == "chart":
        untitled = {name: part for name, part in (item.drawing or {}).items() if name != "title"}
        st.vega_lite_chart(untitled, width="stretch", key=f"{key}_chart", alt=item.alt)
    elif item.kind == "tokens":
        token_view.draw(item.drawing or {}, key=f"{key}_tokens")
    elif item.kind == "answers":
        show_answers([dict(zip(item.columns, row, strict=True)) for row in item.rows], key=key, said=item.title)
        return
    if item.rows and with_table and not large:
        with st.expander("The numbers"):
            show_table(item, key=key)


def show_table(item: Item, *, key: str) -> None:
    """The numbers behind an item, with a file of them."""
    table = pd.DataFrame(list(item.rows), columns=list(item.columns))
    st.dataframe(table, hide_index=True, key=f"{key}_table", alt=f"{', '.join(item.columns)}: {len(table)} rows")
    st.download_button("Download CSV", csv_text(table_of(item)), "numbers.csv", "text/csv", icon=":material/download:", key=f"{key}_csv")


def show_answers(rows: list[dict[str, Any]], *, key: str, said: str = "") -> None:
    """Answers as cards, a page of them at a time; a prompt that the title ``said`` is not repeated."""
    n_pages = max(1, -(-len(rows) // _SHOWN_ANSWERS))
    page = int(st.number_input(f"Page of {n_pages}", 1, n_pages, key=f"{key}_page")) if n_pages > 1 else 1
    cards = []
    for row in rows[(page - 1) * _SHOWN_ANSWERS : page * _SHOWN_ANSWERS]:
        told = [str(row[name]) for name in ("Verdict", "Says", "Flag") if row.get(name)]
        scores = [f"{name.lower()} {row[name]:.0f}" for name in ("Aligned", "Coherent") if isinstance(row.get(name), int | float)] if not told else []
        prompt = str(row.get("Prompt") or "")
        asked = "" if prompt and prompt in said else f'<div class="ps-label">{look.escape(prompt)}</div>'
        cards.append(
            f'<div class="ps-card">{asked}<div class="ps-name">{look.escape(str(row.get("Variant") or ""))}</div>'
            f'<div class="ps-text" dir="auto">{look.escape(str(row.get("Answer") or "")) or "(an empty answer)"}</div>'
            f'<div class="ps-meta">{look.escape(" · ".join([*told, *scores]))}</div></div>'
        )
    st.html(f'<div class="ps-grid">{"".join(cards)}</div>')


def show_today(finding: Finding) -> None:
    """Whether today's data are those of then, said once; nothing where all are."""
    states = {source.place: sources.state(source) for source in finding.sources if source.place}
    for state, start, more in (
        ("changed", "Today's data differ from then", "What is shown here is what was kept."),
        ("gone", "Stored results behind this are gone", "The pictures, numbers and answers kept here stay."),
        ("unknown", "Whether today's data are those of then is not known", "An earlier version kept this without a digest; keep it anew to know."),
    ):
        if places := [place for place, found in states.items() if found == state]:
            st.warning(look.plain(f"{start}: {', '.join(places)}. {more}"), icon=":material/history:")
    if states and set(states.values()) == {"same"}:
        st.caption(f"Today's data are those of then ({len(states)} {'result' if len(states) == 1 else 'results'} checked by content).")


def show_sources(finding: Finding) -> None:
    """Models, autoencoder, prompts, judge, seed, versions and command of each source."""
    for source in finding.sources:
        with st.container(border=True):
            st.markdown(f"**{look.plain(title_of(source))}**, {sources.SAID[sources.state(source)]}")
            look.facts(facts(source))
            if source.command:
                st.code(source.command, language=None, wrap_lines=True)
    look.facts({"Kept": finding.created} | finding.versions)


def answers_behind(finding: Finding, *, key: str) -> None:
    """The answers kept with the numbers."""
    kept = store.answers(finding.key)
    if not kept:
        return
    with st.expander(f"{len(kept):,} answers behind the numbers"):
        if told := sources.told_draws(kept):
            st.caption(look.plain(told))
        words = st.text_input("Text in answer or question", key=f"{key}_find", max_chars=200).strip().lower()
        rows = [r for r in kept if not words or words in f"{r['question']}\n{r['answer']}".lower()]
        named = [{"Variant": r["variant"], "Prompt": r["question"], "Answer": r["answer"], "Aligned": r["aligned"], "Coherent": r["coherent"]} for r in rows]
        show_answers(named, key=f"{key}_behind") if named else st.info("No answer has this text.")


def show_held(held: Held, *, titles: tuple[str, str] | None = None) -> None:
    """Two tables held against each other: a sentence, and what differs.

    Args:
        titles: Of two findings; where left out, the tables are one finding's, then and now.
    """
    said = held.sentence((f"in “{titles[0]}”", f"in “{titles[1]}”")) if titles else held.sentence()
    st.markdown(f"{':material/check:' if held.is_equal else ':material/difference:'} **{look.plain(held.title)}**: {look.plain(said)}.")
    if held.different:
        first, second = titles or ("Then", "Now")
        rows = [{"Row": pair.row, "Number": pair.column, first: str(pair.first), second: str(pair.second)} for pair in held.different[:MOST_DIFFERENT]]
        with st.expander(f"What differs ({len(held.different):,})"):
            st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Numbers that differ, both values")
