"""What stands on a page, remembered while it is drawn, so that all of it can be kept as a finding.

A page draws its pictures by ``chart`` and names what its numbers came from by ``source`` or ``live``. Nothing is worked out before somebody saves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import altair
import pandas as pd
import streamlit as st

from backend.errors import BackendError, InputError
from backend.hosting.exposure import is_hosted
from backend.reports import sources, store
from backend.reports.records import LONGEST_NOTE, LONGEST_TITLE, Cell, Finding, Item, Kind, Source
from backend.studies.provenance import provenance
from pages.shared import look
from pages.shared.state import CHOICES, JOBS, selection

_MEMORY = "on_screen"
MOST_ROWS = 5000
"""Of a table that goes into a finding; whole results lie in the store."""

MOST_SUGGESTED = 4


@dataclass(slots=True)
class Screen:
    """What a page shows at the moment."""

    items: dict[str, tuple[Kind, Callable[[], Item]]] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    """Stored results to the command that makes what is shown of them; an empty one stands for all of them."""

    live: dict[str, Source] = field(default_factory=dict)
    made: dict[str, Item] = field(default_factory=dict)
    """Items that a dialog has asked for, by their key."""

    def item(self, key: str) -> Item:
        """One of ``items``, worked out once."""
        if key not in self.made:
            self.made[key] = self.items[key][1]()
        return self.made[key]

    def suggested(self) -> list[str]:
        """Keys of what is kept unless somebody chooses: all of a few, of more the first picture and the answers."""
        if len(self.items) <= MOST_SUGGESTED:
            return list(self.items)
        first = next((key for key, (kind, _) in self.items.items() if kind == "chart"), next(iter(self.items)))
        return [key for key, (kind, _) in self.items.items() if key == first or kind == "answers"]


def begin() -> None:
    """A page is drawn anew."""
    st.session_state[_MEMORY] = Screen()
    st.session_state[CHOICES] = {}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture."""

    spec: dict[str, Any]
    """Vega-Lite with its data."""

    title: str = ""
    text: str = ""


Picture = altair.TopLevelMixin | dict[str, Any]
"""What a function of ``backend.charts`` returns: a chart of Altair's, or Vega-Lite."""


@st.cache_data(max_entries=300, show_spinner="Drawing…")
def _drawn(name: str, _make: Callable[..., Picture], given: tuple[Any, ...], named: dict[str, Any]) -> Drawn:
    with altair.data_transformers.enable("default", max_rows=None):
        made = _make(*given, **named)
        spec = made if isinstance(made, dict) else made.to_dict(validate=False)  # what was written is no user's input; checking takes half of the time
    said = spec.pop("title", "")
    return Drawn(spec, said["text"], said.get("subtitle", "")) if isinstance(said, dict) else Drawn(spec, said)


def drawn(make: Callable[..., Picture], *given: Any, **named: Any) -> Drawn:
    """What a function of ``backend.charts`` draws from these arguments, made once."""
    return _drawn(f"{make.__module__}.{make.__qualname__}", make, given, named)


def chart(picture: Drawn, *, key: str, alt: str, where: Any = st, table: pd.DataFrame | None = None, title: str = "", text: str = "", **options: Any) -> Any:
    """Draw a picture over the whole width, with its own title above it, and remember it; returns what was clicked.

    Args:
        where: The container that it is drawn in.
        table: The numbers behind it; the data that it is drawn from where left out.
        title: What it says, and ``text`` what is to be known with it, where the picture does not say so itself.
    """
    if picture.title:
        look.say(picture.title, picture.text, where)
    _screen().items[key] = ("chart", lambda: _chart_item(picture.spec, alt, table, title or picture.title, text or picture.text))
    return where.vega_lite_chart(picture.spec, key=key, alt=alt, width="stretch", **options)


def tokens(key: str, *, title: str, text: str, drawing: dict[str, Any]) -> None:
    """Remember tokens with values (``token_view.payload``)."""
    _screen().items[key] = ("tokens", lambda: Item(kind="tokens", title=title, text=text, drawing=drawing))


def answers(key: str, frame: Callable[[], pd.DataFrame] | pd.DataFrame, *, title: str, text: str = "") -> None:
    """Remember answers: Variant, Prompt, Answer and what is said of them."""

    def make() -> Item:
        columns, cells = _cells(frame() if callable(frame) else frame)
        return Item(kind="answers", title=title, text=text, columns=columns, rows=cells)

    _screen().items[key] = ("answers", make)


def source(*places: Path, command: str = "") -> None:
    """The numbers came from these stored results, or, where a command is named, from the part of them that it makes."""
    _screen().places.update(dict.fromkeys(places, command))


def live(key: str, **manifest: Any) -> None:
    """They were worked out for this page; ``command`` makes them anew in a shell."""
    _screen().live[key] = sources.live_source(**manifest)


def offer(page: Any, place: Any) -> None:
    """A button that keeps what is on screen, where there is something."""
    if kept := st.session_state.pop("kept_finding", ""):
        st.toast(f"Kept. [Open the finding](findings?f={kept})", icon=":material/bookmark_added:")
    items = _screen().items
    if items and not is_hosted() and place.button("Save as finding", icon=":material/bookmark_add:", key="save_finding", width="stretch"):
        _ask(page)


@st.dialog("Save as finding")
def _ask(page: Any) -> None:
    """Words for what is on screen; a fault leaves them as they are."""
    screen = _screen()
    numbers = {key: n for n, key in enumerate(screen.items, 1)}
    chosen = st.multiselect(
        "What is kept",
        list(screen.items),
        default=screen.suggested(),
        key="finding_items",
        format_func=lambda key: f"{numbers[key]}. {_said(screen.item(key))}",
    )
    st.caption("With it the numbers, the answers behind them and where they came from.")
    first = screen.item(next(iter(screen.items)))
    title = st.text_input("What did you find?", value=(first.title or page.title)[:LONGEST_TITLE], max_chars=LONGEST_TITLE, key="finding_title")
    note = st.text_area("Note", key="finding_note", max_chars=LONGEST_NOTE, placeholder="What it means, what speaks against it, what is next.")
    used = sorted({tag for finding in store.all_findings()[0] for tag in finding.tags})
    tags = st.multiselect("Tags", used, key="finding_tags", accept_new_options=True, placeholder="Choose or type")
    if st.button("Save", type="primary", icon=":material/bookmark_add:", key="finding_save"):
        try:
            with st.spinner("Keeping it…"):
                key = save(page, chosen, title=title, note=note, tags=tags)
        except BackendError as fault:
            st.error(look.plain(str(fault)))
            return
        st.session_state["kept_finding"] = key
        st.rerun()


def save(page: Any, chosen: Sequence[str], *, title: str, note: str, tags: Sequence[str]) -> str:
    """Keep those items of what is on screen that are chosen by their keys; returns the finding's key.

    Raises:
        InputError: Nothing is chosen, or the words are too many.
        DiskError: No space, or not writable.
    """
    if not chosen:
        raise InputError("A finding keeps at least one picture or list of answers. Choose what is kept.")
    screen = _screen()
    whole = [sources.source_of(place) for place, command in screen.places.items() if not command]
    parts = [sources.source_of(place, command) for place, command in screen.places.items() if command]
    about = provenance()
    finding = Finding(
        key=store.new_key(), title=" ".join(title.split()), note=note.strip(), tags=tuple(tags), page=page.url_path, page_title=page.title, query=_choices(),
        created=store.now(), versions={name: str(version) for name, version in about["versions"].items()}, items=tuple(screen.item(key) for key in screen.items if key in chosen),
        sources=(*whole, *parts, *screen.live.values()),
    )  # fmt: skip
    store.save(finding, sources.answers_of(whole))
    return finding.key


_KINDS: dict[Kind, str] = {"chart": "A picture", "tokens": "Tokens with values", "answers": "Answers"}


def _said(item: Item) -> str:
    """What an item is called among others."""
    return shorten(item.title or item.alt, 90, placeholder=" …") or _KINDS[item.kind]


def _choices() -> tuple[tuple[str, str], ...]:
    """What is chosen on the page, defaults too: tomorrow's default may be another."""
    chosen: dict[str, str] = st.session_state.get(CHOICES, {})
    return (*((key, value) for key, value in chosen.items() if value and key not in JOBS), *((key, value) for key, value in selection() if key not in chosen))


def _screen() -> Screen:
    return st.session_state.setdefault(_MEMORY, Screen())


def _chart_item(spec: dict[str, Any], alt: str, table: pd.DataFrame | None, title: str, text: str) -> Item:
    if table is None:
        columns, cells = _longest(spec.get("datasets", {}))
    else:
        columns, cells = _cells(table)
    return Item(kind="chart", title=title, text=text, alt=alt, columns=columns, rows=cells, drawing=spec)


def _longest(datasets: Mapping[str, list[dict[str, Any]]]) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """The largest of the tables that a picture is drawn from."""
    found = max(datasets.values(), key=len, default=[])
    return _cells(pd.DataFrame(found))


def _cells(frame: pd.DataFrame) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """A table as plain values; what is missing is None."""
    part = frame.head(MOST_ROWS)
    plain = part.astype(object).where(part.notna(), None)
    cells = tuple(
        tuple(v if isinstance(v, str | int | float | bool) or v is None else _plain(v) for v in row) for row in plain.itertuples(index=False, name=None)
    )
    return tuple(map(str, frame.columns)), cells


def _plain(value: Any) -> Cell:
    return value.item() if hasattr(value, "item") else str(value)
