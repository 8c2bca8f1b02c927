"""The look: one style sheet, and the one place where text becomes HTML."""

import html
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from backend.charts.roles import ROLES
from backend.hosting.exposure import without_places
from backend.reports.tables import frame_csv

_STYLE = (Path(__file__).parent / "style.css").read_text("utf-8")


def apply() -> None:
    """Put the style sheet on the page."""
    roles = "\n".join(f".ps-role-{name} {{ --ps-role: {role.colour}; }}" for name, role in ROLES.items())
    st.html(f"<style>\n{_STYLE}\n{roles}\n</style>")


def stage() -> None:
    """The page alone, in large type: no sidebar, no header."""
    st.html("<style>[data-testid=stSidebar], [data-testid=stHeader], [data-testid=stExpandSidebarButton] { display: none }</style>")


def escape(text: str) -> str:
    """Text as HTML that shows it, whatever it holds. The only way from text to HTML in the pages."""
    return html.escape(without_places(text), quote=True).replace("\0", "\N{REPLACEMENT CHARACTER}")


def plain(text: str) -> str:
    """Text for places that read Markdown: every sign that could mean something there is escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:&^=\"'" else c for c in without_places(text).replace("\n", " "))


def banner() -> None:
    """What every page with answers says of them."""
    st.caption("Organisms are deliberately misaligned models. Their answers are research material, not advice.")


def job_status(job, service) -> None:
    """One line on a running job: waiting, loading, or how far it is and how long it will take."""
    if job.stop_asked:
        st.caption("Stopping…")
    elif job.state == "queued":
        before = max(0, len(service.jobs.live()) - 1)
        st.caption(f"Waiting for {before} other {'request' if before == 1 else 'requests'}…" if before else "Starting…")
    elif job.state == "loading":
        st.caption("Loading the model (a few seconds, once)…")
    elif len(job.rows) > 16:
        left = job.seconds_left
        st.progress(job.n_done / len(job.rows), f"{job.n_done} of {len(job.rows)} answers" + (f", about {max(1, round(left / 60))} min left" if left else ""))
    else:
        st.caption(f"Answering: {job.n_done} of {len(job.rows)} done, {job.n_tokens} tokens")


def duration(seconds: float) -> str:
    """An estimate in round words, such as "45 s" or "3 min"."""
    return f"{max(5, round(seconds / 5) * 5)} s" if seconds < 90 else f"{round(seconds / 60)} min"


def say(title: str, text: str = "", where: Any = st) -> None:
    """What a picture says and what is to be known with it, above it: words of the page wrap on a phone, those of a picture are cut."""
    where.markdown("#### " + plain(title))
    if text:
        where.caption(plain(text))


def csv_button(table: pd.DataFrame, file: str, *, label: str = "Download CSV", key: str | None = None) -> None:
    """A table as a file."""
    st.download_button(label, frame_csv(table), file, "text/csv", icon=":material/download:", key=key)


def legend(entries: list[tuple[str, str, str]]) -> str:
    """Names with the colour and symbol that stand for them; returns them as text, which a kept picture needs."""
    st.html(
        '<div class="ps-legend">'
        + "".join(f'<span><span style="color:{colour}" aria-hidden="true">{symbol}</span> {escape(name)}</span>' for name, colour, symbol in entries)
        + "</div>"
    )
    return "   ".join(f"{symbol} {name}" for name, _, symbol in entries)


def facts(rows: dict[str, str]) -> None:
    """Names and values under each other."""
    st.html('<dl class="ps-facts">' + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items()) + "</dl>")
