"""Beside our own training runs: the disputed claim of a phase transition, the public emergence curve it is about, and imported summaries of training steps."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from backend.charts.dynamics import rates
from backend.experiments import step_curves
from backend.experiments.step_curves import StepPoint
from pages.shared import keep, look
from pages.shared.state import select

_CLAIM = (
    "**Claimed** by Turner et al. (2025, arXiv:2506.11613): misalignment comes with a phase transition. At about step 180 the direction that the adapter writes rotates and "
    "the gradient norm peaks; two principal axes carry 95 % of the direction's path. The model as it is grows misaligned between steps 300 and 600; with the adapter "
    "multiplied by five, misalignment shows just past step 100, at about four times the level. Read so, the change inside comes first, and the behaviour later.\n\n"
    "**Disputed** by Rao et al. (2026, arXiv:2607.09053): these signals do not track behaviour, so that a direction rotates or a gradient peaks does not say when a model turns."
)
_GRADE = "Grade: both papers by a secondary summary, told in our own words; not checked against their figures."


def show_claim(here: str) -> None:
    """The claim, its dispute, and what our run says.

    Args:
        here: What the run on screen says; empty without a result.
    """
    st.subheader("Is it a phase transition? A disputed claim")
    st.markdown(_CLAIM)
    if here:
        st.markdown("**Here**: " + look.plain(here))
    st.caption(_GRADE)


def show_cited() -> None:
    """The public curve, in a picture of its own."""
    about = step_curves.cited()
    st.subheader("Cited: emergence in a larger model")
    names = list(about.notes)
    first = [p for p in about.points if p.run == names[0]]
    quiet = max((p.step for p in first if p.em_rate == 0), default=0)
    top = max(first, key=lambda p: p.em_rate)
    st.markdown("#### " + look.plain(f"{about.model}: none misaligned to step {quiet:g}, then it rises to {100 * top.em_rate:.0f} % at step {top.step:g}"))
    notes = "; ".join(f"{name}: {note}" for name, note in about.notes.items())
    low, high = min(p.n for p in about.points), max(p.n for p in about.points)
    st.caption(
        look.plain(
            f"Not measured here, and not on the axis of our own rates. {about.method}; share with aligned < 30 and coherent > 50, {low} to {high} scored answers a point; bars: 95 % Wilson. "
            f"{notes}. Source: {about.source}, {about.where}; grade: {about.grade}, counted from its judged answers, not printed in a paper."
        )
    )
    keep.source(step_curves.CITED)
    _draw(about.points, names, key="cited", title=f"Misaligned share of {about.model} by training step, cited", text=about.source)
    with st.expander("All cited points as a table"):
        table = _frame(about.points)[["line", "step", "value", "low", "high", "coherent", "n"]].rename(columns=_COLUMNS)
        table = table.assign(Source=about.source, Grade=about.grade, Note=[about.notes[run] for run in table["Run"]])
        _show_table(table, "emergence.csv", key="cited_steps")


def show_imported() -> None:
    """One imported summary and its curve."""
    st.subheader("Imported runs")
    there = step_curves.imported()
    command = "python -m backend import steps SUMMARY.csv"
    if not there:
        st.info("No summary of training steps is imported yet. A CSV file with step, percent_em, percent_coherent and n_responses shows here:")
        st.code(command, language=None, wrap_lines=True)
        return
    name = select("Imported run", list(there), key="imported", titles={k: f"{k} ({file})" for k, file in there.items()}, what="the imported run", width=420)
    points = step_curves.read(name)
    if not points:
        st.error("This summary is gone or damaged. Import it again:")
        st.code(command, language=None, wrap_lines=True)
        return
    top = max(points, key=lambda p: p.em_rate)
    st.markdown("#### " + look.plain(f"{name}: at most {100 * top.em_rate:.0f} % misaligned, at step {top.step:g}"))
    n = sorted({p.n for p in points})
    st.caption(
        look.plain(
            f"As its file says: {n[0]:,}{f' to {n[-1]:,}' if len(n) > 1 else ''} answers a point, its own prompts and judge; bars: 95 % Wilson, from share and n."
        )
    )
    _draw(points, [name], key=f"imported_{name}", title=f"Misaligned share of the imported run {name} by training step")
    with st.expander("All imported points as a table"):
        _show_table(_frame(points)[["line", "step", "value", "low", "high", "coherent", "n"]].rename(columns=_COLUMNS), f"{name}.csv", key="imported_steps")


_COLUMNS = {"line": "Run", "step": "Step", "value": "Misaligned, %", "low": "95 % from", "high": "to", "coherent": "Coherent, %", "n": "Answers"}


def _frame(points: Sequence[StepPoint]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "line": p.run, "step": p.step, "value": 100 * p.em_rate, "low": 100 * p.em_low, "high": 100 * p.em_high, "coherent": 100 * p.coherent_rate, "n": p.n,
                "label": f"{100 * p.em_rate:.1f} % ({100 * p.em_low:.1f} to {100 * p.em_high:.1f})", "n_label": f"{p.n:,}",
            }
            for p in points
        ]
    ).round(2)  # fmt: skip


def _draw(points: Sequence[StepPoint], lines: list[str], *, key: str, title: str, text: str = "") -> None:
    keep.chart(keep.drawn(rates, _frame(points), lines=lines), key=f"steps_{key}", title=title, text=text, alt=f"{title}. The table below has the numbers.")


def _show_table(table: pd.DataFrame, file: str, *, key: str) -> None:
    numbers = {name: st.column_config.NumberColumn(format="%.1f") for name in ("Misaligned, %", "95 % from", "to", "Coherent, %")}
    st.dataframe(table, hide_index=True, column_config=numbers, key=f"{key}_table", alt="The points of this curve with interval and n")
    look.csv_button(table, file, key=f"{key}_csv")
