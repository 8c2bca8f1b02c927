"""Selections in the URL: what a link asks for is checked against what there is, and what is not there is said.

Streamlit's own binding writes an option's *label* into the URL; ``select`` writes its key, so that a link outlives a new
wording. Values survive a visit to another page.
"""

import math
from collections.abc import Callable, Sequence
from urllib.parse import quote, urlsplit

import streamlit as st

from backend.hosting.exposure import space_host
from pages.shared.look import plain

CHOICES = "choices"
"""Where a page's select boxes are remembered while it is drawn, the defaults too, which a link leaves out."""

JOBS = ("job", "ladder", "odds", "evaluation", "sweep_job", "training")  # what runs for somebody is no part of what is on screen


def select(label: str, options: Sequence[str], *, key: str, titles: dict[str, str], what: str, on_change: Callable[[], None] | None = None, **kwargs) -> str:
    """A select box whose key is a URL parameter; the first option is the default and leaves the URL clean.

    Args:
        what: The kind of thing, for the sentence about a link that asks for one that is not here.
    """
    widget = f"select_{key}"
    current = st.session_state.get(widget)
    if current not in options:
        asked = st.query_params.get(key) or st.session_state.get(f"kept_{key}", "")
        if asked and asked not in options and f"kept_{key}" not in st.session_state:  # a link, not a narrower choice of one's own
            _warn(what, [asked])
        current = asked if asked in options else options[0]
    st.session_state[widget] = current  # said anew: on another page the same key is another widget, which would begin with its first option
    value = st.selectbox(label, options, key=widget, format_func=titles.get, on_change=on_change, **kwargs)
    st.session_state[f"kept_{key}"] = value
    st.session_state.setdefault(CHOICES, {})[key] = value
    if value != options[0]:
        st.query_params[key] = value
    else:
        st.query_params.pop(key, None)
    return value


def choose(key: str, value: str) -> None:
    """Set a ``select`` from a callback."""
    st.session_state[f"select_{key}"] = value


def kept_list(key: str) -> list[str]:
    """A list in the URL, brought back after a visit to another page."""
    if key not in st.query_params and st.session_state.get(f"kept_{key}"):
        st.query_params[key] = st.session_state[f"kept_{key}"]
    return st.query_params.get_all(key)


def asked_for(key: str, there: Sequence[str], *, most: int, what: str) -> list[str]:
    """Those of a list in the URL that are there, as many as are allowed; a link's others are told.

    Args:
        what: The kind of thing, for the sentence.
    """
    asked = list(dict.fromkeys(kept_list(key)))
    found = [one for one in asked if one in there][:most]
    is_link = f"kept_{key}" not in st.session_state  # not a choice of one's own from another run
    if is_link and (unknown := [one for one in asked if one not in there]):
        _warn(what, unknown)
    elif is_link and len(asked) > most:
        st.warning(f"This link asks for {len(asked)} of what a picture holds {most} of; the first are shown.")
    return found


def keep_list(key: str, values: list[str]) -> None:
    """Write a list into the URL; an empty one leaves it."""
    st.session_state[f"kept_{key}"] = values
    if values:
        st.query_params[key] = values
    else:
        st.query_params.pop(key, None)


def pick_page(total: int, size: int, *, key: str) -> int:
    """A number input for the page of a long table, 1 and on; where the table became shorter, the last page is shown."""
    n_pages = max(1, -(-total // size))
    if st.session_state.get(key, 1) > n_pages:
        st.session_state[key] = n_pages
    return int(st.number_input(f"Page of {n_pages:,}", 1, n_pages, key=key))


def warn_of_unknown(parameter: str, allowed: Sequence[str], what: str) -> None:
    """Say so if the link names values of a bound widget that do not exist; Streamlit would silently show the default instead."""
    if parameter not in st.session_state:
        unknown = [value for value in st.query_params.get_all(parameter) if value not in allowed]
        if unknown:
            _warn(what, unknown)


def warn_of_number(parameter: str, low: float, high: float, what: str) -> None:
    """The same for a number: say so if the link gives none, or one out of range."""
    if said := st.session_state.pop(f"wrong_{parameter}", ""):
        st.warning(said)
    if parameter in st.session_state or parameter not in st.query_params:
        return
    asked = st.query_params[parameter]
    try:
        number = float(asked)
    except ValueError:
        number = math.nan
    if low <= number <= high:
        return
    said = f"This link asks for {what} {plain(asked[:40])}; it can be {low:g} to {high:g}. The default is used instead."
    if math.isinf(number):  # Streamlit's own binding fails on it, so the page begins anew without
        st.session_state[f"wrong_{parameter}"] = said
        del st.query_params[parameter]
        st.rerun()
    st.warning(said)


def selection() -> list[tuple[str, str]]:
    """What is chosen on screen, as the link says it; what a Space adds to the address, a visitor's token among it, is for its frame alone."""
    return [(k, v) for k in st.query_params if not k.startswith("__") for v in st.query_params.get_all(k) if k not in JOBS]


def home_address() -> str:
    """Of this dashboard, without page and query; empty where it is not known."""
    parts = urlsplit(_url())
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else ""


def link(pairs: Sequence[tuple[str, str]] | None = None) -> str:
    """The address of what is on screen, or of this page with other choices, for a colleague with access to this server."""
    query = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in (selection() if pairs is None else pairs))
    return _url() + (f"?{query}" if query else "")


def _url() -> str:
    """Of this page; on a Space its own host, because the Hub's page around the frame does not take a query."""
    url, host = st.context.url or "", space_host()
    return urlsplit(url)._replace(scheme="https", netloc=host).geturl() if host else url


def _warn(what: str, unknown: list[str]) -> None:
    st.warning(f"This link asks for {what} {plain(', '.join(unknown)[:200])}, which is not here. The default is shown instead.")
