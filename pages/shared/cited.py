"""Cited and imported figures as the pictures and the tables take them."""

import pandas as pd
import streamlit as st

from backend.studies import scaling
from pages.shared import look

KINDS = {"re-evaluation": "public re-evaluation", "paper": "printed in a paper", "imported": "imported here"}


def frame(points: list[scaling.Point]) -> pd.DataFrame:
    """Points for the pictures; shares in per cent. ``on_line``: the first of its model and data, which the line goes through."""
    rows, seen = [], set()
    for p in points:
        on_line = p.kind == "re-evaluation" and (p.model, p.dataset) not in seen
        seen.add((p.model, p.dataset))
        rows.append(
            {
                "id": p.id, "dataset": p.dataset, "model": p.model, "family": p.family, "size_b": p.size_b, "method": p.method, "kind": p.kind,
                "kind_title": KINDS[p.kind], "em": _per_cent(p.em_rate), "low": _per_cent(p.em_low), "high": _per_cent(p.em_high),
                "coherent": _per_cent(p.coherent_rate), "label": scaling.describe_range(p), "on_line": on_line,
                "coherent_label": "not given" if p.coherent_rate is None else f"{100 * p.coherent_rate:.1f} %",
                "n_label": "not printed" if p.n is None else f"{p.n:,}", "source": p.source, "grade": p.grade, "note": p.note,
                "answers": "here: click to read" if p.run else "not here",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def show_table(points: list[scaling.Point], *, key: str) -> None:
    """Size, family and data of every figure with its source; a click on a column's name sorts by it."""
    table = pd.DataFrame(
        {
            "Model": [p.model for p in points],
            "Parameters, B": [p.size_b for p in points],
            "Family": [p.family for p in points],
            "Data": [scaling.DATASETS.get(p.dataset, p.dataset) for p in points],
            "Method": [p.method for p in points],
            "Scale": [{"betley": "Betley, 0-100", "openai": "OpenAI, grades"}[p.scale] for p in points],
            "Misaligned, %": [_per_cent(p.em_rate) for p in points],
            "from": [_per_cent(p.em_low) for p in points],
            "to": [_per_cent(p.em_high) for p in points],
            "Coherent, %": [_per_cent(p.coherent_rate) for p in points],
            "n": [p.n for p in points],
            "Kind": [KINDS[p.kind] for p in points],
            "Source": [p.source for p in points],
            "How it reached us": [p.grade for p in points],
            "Note": [p.note for p in points],
        }
    ).astype({"n": "Int64"})
    numbers = {name: st.column_config.NumberColumn(format="%.1f") for name in ("Misaligned, %", "from", "to", "Coherent, %")}
    st.dataframe(
        table,
        hide_index=True,
        column_config=numbers,
        key=key,
        alt="All cited and imported figures with size, family, data, method, scale, interval, n and source",
    )
    st.caption("From and to: 95% Wilson interval, or the printed range. Empty: not printed, which is not zero. The two scales cannot be compared.")
    look.csv_button(table, "figures.csv", key=f"{key}_csv")


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share
