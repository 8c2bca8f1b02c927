"""A finding: what somebody saw on a page, kept with its pictures, its numbers and where they came from."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from backend.errors import ConfigError, InputError

SCHEMA_VERSION = 1
LONGEST_TITLE = 200  # characters
LONGEST_NOTE = 20_000
LONGEST_TAG = 40
MOST_TAGS = 12
Kind = Literal["chart", "tokens", "answers", "table"]
KINDS: tuple[Kind, ...] = ("chart", "tokens", "answers", "table")
Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing on a page: a picture, tokens with values, answers, or a table alone."""

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
    """Of its tables, to see whether they are still those; empty for what was worked out live."""

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
    """As JSON takes it; a number that is not finite becomes None."""
    return _finite(asdict(finding))


def from_record(record: Any) -> Finding:
    """From what ``to_record`` gave, or an older version of this program.

    Raises:
        ConfigError: It is no finding, or one of a newer version.
    """
    try:
        version = int(record["schema_version"])
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"The finding {record.get('key')} was kept by a newer PersonaScope (schema {version}; this one reads {SCHEMA_VERSION}). Update to open it."
            )
        known = {f.name for f in fields(Finding)}
        told = {name: value for name, value in record.items() if name in known}
        told["tags"] = tuple(map(str, told.get("tags", ())))
        told["query"] = tuple((str(name), str(value)) for name, value in told.get("query", ()))
        told["items"] = tuple(_item(item) for item in told.get("items", ()))
        told["sources"] = tuple(Source(**source) for source in told.get("sources", ()))
        found = Finding(**told)
        if not all(isinstance(getattr(found, name), str) for name in ("key", "title", "note", "page", "page_title", "created", "edited")):
            raise TypeError
    except (TypeError, KeyError, ValueError, AttributeError) as fault:
        raise ConfigError("The file of this finding is damaged. Take it out of the folder, or bring back a copy.") from fault
    return found


def dumps(finding: Finding) -> str:
    """The text of its file."""
    return json.dumps(to_record(finding), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _item(record: dict[str, Any]) -> Item:
    if record["kind"] not in KINDS:
        raise ValueError(record["kind"])
    rows = tuple(tuple(row) for row in record.get("rows", ()))
    columns = tuple(map(str, record.get("columns", ())))
    if any(len(row) != len(columns) for row in rows):
        raise ValueError("rows and columns differ")
    return Item(**{**record, "rows": rows, "columns": columns})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
