"""Folders of findings: their tables, their pictures, or a whole site that any web host serves and that opens without one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from backend.reports import facts, html, pictures
from backend.reports.html import Beside, Kept
from backend.reports.look import THEMES
from backend.reports.records import dumps
from backend.reports.tables import csv_text, slug, tables_of, write_parquet

_THUMBNAIL = 480  # pixels wide


def write_site(kept: Sequence[Kept], folder: Path, *, title: str, address: str = "") -> None:
    """An index with a card each, a page each, the scripts once, and beside each page its data, pictures and code; all links are relative.

    Raises:
        ConfigError: A picture is damaged.
    """
    assets = folder / "assets"
    assets.mkdir()
    for name, text in (("vega.js", html.vega()), ("report.js", html.script()), ("report.css", html.styles())):
        _write(assets / name, text)
    pictured = set()
    for one in kept:
        key, place = one.finding.key, folder / one.finding.key
        write_tables([one], place, below="data")
        write_pictures([one], place, ("png", "svg"), below="pictures")
        _write(place / "finding.json", dumps(one.finding))
        files = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
        _write(place / "index.html", html.document([one], title=one.finding.title, address=address, beside=Beside(tuple(files))))
        first = next(filter(pictures.is_picture, one.finding.items), None)
        if first is None:
            continue
        pictured.add(key)
        for theme in THEMES:
            _write(assets / f"{key}-{theme}.svg", pictures.svg(first, theme, width=_THUMBNAIL, is_titled=False))
    _write(folder / "index.html", html.index(kept, title=title, pictured=pictured))


def write_tables(kept: Sequence[Kept], folder: Path, *, below: str = ".") -> None:
    """Every table as CSV and as Parquet, and the code that makes the numbers anew; of several findings each in a folder of its own."""
    for one, place in _places(kept, folder):
        (place / below).mkdir(parents=True, exist_ok=True)
        for number, table in enumerate(tables_of(one.finding, one.answers), 1):
            name = slug(table.title, number)
            _write(place / below / f"{name}.csv", csv_text(table))
            write_parquet(table, place / below / f"{name}.parquet")
        _write(place / "reproduce.sh", facts.reproduction(one.finding))


def write_pictures(kept: Sequence[Kept], folder: Path, endings: Sequence[str], *, below: str = ".") -> None:
    """Every picture in light and dark, as ``png``, ``svg`` or both.

    Raises:
        ConfigError: A picture is damaged.
    """
    for one, place in _places(kept, folder):
        (place / below).mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(filter(pictures.is_picture, one.finding.items), 1):
            for theme in THEMES:
                drawn = pictures.svg(item, theme)
                file = place / below / f"{slug(item.title, number)}-{theme}"
                if "svg" in endings:
                    _write(file.with_suffix(".svg"), drawn)
                if "png" in endings:
                    file.with_suffix(".png").write_bytes(pictures.png(drawn))


def _places(kept: Sequence[Kept], folder: Path) -> Iterable[tuple[Kept, Path]]:
    return ((one, folder if len(kept) == 1 else folder / one.finding.key) for one in kept)


def _write(path: Path, text: str) -> None:
    """As UTF-8; half a character, which some texts of models hold, becomes a question mark."""
    path.write_bytes(text.encode("utf-8", "replace"))
