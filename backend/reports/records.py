"""A finding: what somebody saw on a page, kept with its pictures, its numbers and where they came from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from backend.errors import ConfigError, InputError

SCHEMA_VERSION = 2
"""2: digests cover manifests. Of earlier ones the digests are not read, since they say something else."""

DAMAGED = "The file of this finding is damaged. Take it out of the folder, or bring back a copy."
LONGEST_TITLE = 200  # characters
LONGEST_NOTE = 20_000
LONGEST_TAG = 40
MOST_TAGS = 12
Kind = Literal["chart", "tokens", "answers"]
KINDS: tuple[Kind, ...] = ("chart", "tokens", "answers")
Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing on a page: a picture, tokens with values, or answers."""

    kind: Kind
    title: str
    """What it says, such as "Reckless: 12.5 % of answers misaligned"."""

    text: str = ""
    """What is to be known with it: measure, n, judge."""

    alt: str = ""
    """The picture in words, for who does not see it."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    """The numbers behind it, (n_rows, n_columns); None is missing. Of answers: Variant, Prompt and Answer, and what was said of them."""

    drawing: dict[str, Any] | None = None
    """Of a chart its Vega-Lite with the data inside; of tokens what ``web/token_view.js`` draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A stored result, a file of cited figures, or a live reading that the numbers came from."""

    place: str
    """Below the stores' roots, such as ``evaluated/NAME``; empty for what was worked out live."""

    digest: str
    """Of its tables and manifest, to see whether they are still those; empty for what was worked out live or could not be read."""

    manifest: dict[str, Any]
    """Models with fingerprints, autoencoder, prompts, judge, seed, versions, command: what is known of how it was made."""

    @property
    def command(self) -> str:
        """Makes it anew; empty where nothing does, as for cited figures."""
        return str(self.manifest.get("command", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A page as it was, and what somebody says of it."""

    key: str
    """Ten letters and digits, in links and commands."""

    title: str
    note: str = ""
    tags: tuple[str, ...] = ()
    page: str
    """Its path in links, such as ``compare``; empty for Overview."""

    page_title: str
    query: tuple[tuple[str, str], ...] = ()
    """What was chosen there, as the link says it."""

    created: str
    """ISO time, UTC."""

    edited: str = ""
    versions: dict[str, str]
    """Of PersonaScope and what it ran on."""

    items: tuple[Item, ...] = ()
    sources: tuple[Source, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def with_words(self, *, title: str, note: str, tags: Sequence[str], edited: str) -> Self:
        """Said anew; what was kept stays.

        Raises:
            InputError: The words are too many.
        """
        title, tags = check_words(title, note, tags)
        return replace(self, title=title, note=note.strip(), tags=tags, edited=edited)

    def with_items(self, titles: Mapping[int, str]) -> Self:
        """Those of its items alone that have a title here, by their place, under that title.

        Raises:
            InputError: A title is too long.
        """
        titles = {place: " ".join(title.split()) for place, title in titles.items()}
        if longest := next((title for title in titles.values() if len(title) > LONGEST_TITLE), ""):
            raise InputError(f"A picture's title has at most {LONGEST_TITLE} characters, this one has {len(longest):,}: {longest[:60]}… Shorten it.")
        return replace(self, items=tuple(replace(item, title=titles[place]) for place, item in enumerate(self.items) if place in titles))


def check_words(title: str, note: str, tags: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Title and tags without spare space.

    Raises:
        InputError: There is no title, or something is too long.
    """
    title = " ".join(title.split())
    told = tuple(dict.fromkeys(" ".join(tag.split()) for tag in tags if tag.strip()))
    if not title:
        raise InputError("A finding needs a title: say in one sentence what was found.")
    if len(title) > LONGEST_TITLE:
        raise InputError(f"A title has at most {LONGEST_TITLE} characters, this one has {len(title):,}. Put the rest into the note.")
    if len(note) > LONGEST_NOTE:
        raise InputError(f"A note has at most {LONGEST_NOTE:,} characters, this one has {len(note):,}. Shorten it.")
    if len(told) > MOST_TAGS or any(len(tag) > LONGEST_TAG for tag in told):
        raise InputError(f"A finding has at most {MOST_TAGS} tags of at most {LONGEST_TAG} characters. Take fewer or shorter ones.")
    return title, told


def to_record(finding: Finding) -> dict[str, Any]:
    """As JSON and UTF-8 take it: a number that is not finite becomes None, half a character a question mark."""
    return _plain(asdict(finding))


def from_record(record: Any) -> Finding:
    """From what ``to_record`` gave, or an older version of this program.

    Raises:
        ConfigError: It is no finding, or one of a newer version.
    """
    try:
        record = _plain(record)
        version = int(record["schema_version"])
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"The finding {record.get('key')} was kept by a newer PersonaScope (schema {version}; this one reads {SCHEMA_VERSION}). Update to open it."
            )
        told = {"page": "", "created": "", "versions": {}} | _known(Finding, record) | {"schema_version": SCHEMA_VERSION}
        told.setdefault("page_title", told["page"] or "Overview")
        told["tags"] = tuple(map(str, told.get("tags", ())))
        told["query"] = tuple((str(name), str(value)) for name, value in told.get("query", ()))
        told["items"] = tuple(_item(item) for item in told.get("items", ()))
        told["sources"] = tuple(_source(source, version) for source in told.get("sources", ()))
        told["versions"] = {name: str(value) for name, value in told["versions"].items()}
        found = Finding(**told)
        _check_texts(found, "key", "title", "note", "page", "page_title", "created", "edited")
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as fault:
        raise ConfigError(DAMAGED) from fault
    if len(found.title) > LONGEST_TITLE or len(found.note) > LONGEST_NOTE:
        raise ConfigError(
            f"The title or the note of this finding is too long: at most {LONGEST_TITLE} and {LONGEST_NOTE:,} characters. Shorten it in its file."
        )
    return found


def dumps(finding: Finding) -> str:
    """The text of its file."""
    return json.dumps(to_record(finding), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _item(record: dict[str, Any]) -> Item:
    if record["kind"] not in KINDS:
        raise ValueError(record["kind"])
    rows = tuple(tuple(row) for row in record.get("rows", ()))
    columns = tuple(map(str, record.get("columns", ())))
    if any(len(row) != len(columns) or not all(isinstance(cell, Cell) for cell in row) for row in rows):
        raise ValueError("rows are no table")
    item = Item(**_known(Item, record) | {"rows": rows, "columns": columns})
    _check_texts(item, "title", "text", "alt")
    if item.drawing is not None:
        _check_drawing(item.kind, item.drawing)
    return item


def _check_drawing(kind: Kind, drawing: dict[str, Any]) -> None:
    """Raises: what a drawing of a wrong shape brings about; a chart's is judged by Vega alone."""
    if not isinstance(drawing, dict):
        raise TypeError
    if kind == "tokens":
        n = sum(drawing["sizes"])
        lengths = {len(drawing["sizes"]), len(drawing["texts"]), len(drawing["roles"])}
        if len(lengths) != 1 or {n} != {len(drawing["ids"]), *(len(panel["values"]) for panel in drawing["panels"])} or not set(drawing["roles"]) <= set("stc"):
            raise ValueError("tokens and values differ")


def _source(record: dict[str, Any], version: int) -> Source:
    source = Source(**_known(Source, record) | ({"digest": ""} if version < 2 else {}))
    _check_texts(source, "place", "digest")
    if not isinstance(source.manifest, dict):
        raise TypeError
    return source


def _known(kind: type, record: dict[str, Any]) -> dict[str, Any]:
    """What this version knows of a record; other versions say more."""
    return {f.name: record[f.name] for f in fields(kind) if f.name in record}


def _check_texts(found: Any, *names: str) -> None:
    if not all(isinstance(getattr(found, name), str) for name in names):
        raise TypeError


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(str(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
