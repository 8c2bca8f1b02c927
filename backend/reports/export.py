"""Findings as files: one place that knows every format. A target is replaced whole or not at all."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backend.errors import InputError
from backend.paths import new_file, new_folder, told_disk_faults
from backend.reports import store
from backend.reports.html import Kept, document
from backend.reports.records import Finding
from backend.reports.tables import slug, stacked_csv

Format = Literal["html", "pptx", "csv", "png", "svg", "static"]


@dataclass(frozen=True, slots=True)
class Form:
    """What a format is for readers."""

    title: str
    is_file: bool
    """One file; otherwise a folder, or a .zip of it."""


FORMATS: dict[Format, Form] = {
    "html": Form("One HTML file that opens offline", True),
    "pptx": Form("Slides (PPTX)", True),
    "csv": Form("Tables (CSV and Parquet)", False),
    "png": Form("Pictures (PNG)", False),
    "svg": Form("Pictures (SVG)", False),
    "static": Form("A folder for any web host", False),
}
_MIME = {
    ".html": "text/html",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".zip": "application/zip",
}


def load(keys: Sequence[str]) -> list[Kept]:
    """Findings with the answers behind them, in the order asked for, each once.

    Raises:
        ResultMissingError: There is none of that key.
        ConfigError: A file of one is damaged.
    """
    return [Kept(store.load(key), store.answers(key)) for key in dict.fromkeys(keys)]


def write(kept: Sequence[Kept], form: Format, out: Path, *, address: str = "") -> None:
    """Write findings to a file, a folder, or a .zip of the folder; what was there is replaced when all is written.

    With ``csv`` and a name that ends in .csv all tables come into that one file.

    Args:
        address: Of a dashboard that has them, for a link back.

    Raises:
        InputError: There is nothing to write, or ``out`` cannot be replaced.
        ConfigError: A picture is damaged.
        DiskError: No space, or not writable; what was there stays.
    """
    out = out.absolute()
    try:
        _check(kept, form, out, address)
        with told_disk_faults(f"writing {out}"):
            if FORMATS[form].is_file or out.suffix in (".csv", ".zip"):
                with new_file(out) as part:
                    part.write_bytes(_bytes(kept, form, out.suffix, address))
            else:
                with new_folder(out) as part:
                    _fill(kept, form, part, address)
    except OSError as fault:
        raise InputError(f"{out} cannot be written ({fault.strerror}). Give another place.") from fault


def name_of(kept: Sequence[Kept], form: Format) -> tuple[str, str]:
    """Name and media type of the file for a browser."""
    suffix = f".{form}" if FORMATS[form].is_file else ".zip"
    name = slug(title_of([one.finding for one in kept]), len(kept)).partition("-")[2] or "findings"
    return name + suffix, _MIME[suffix]


def title_of(findings: Sequence[Finding]) -> str:
    """Of one its own title, of several their number."""
    return findings[0].title if len(findings) == 1 else f"{len(findings)} findings"


def _check(kept: Sequence[Kept], form: Format, out: Path, address: str) -> None:
    if not kept:
        raise InputError("There is no finding to export. Save one on a page of the dashboard, or name one: python -m backend findings list")
    if address and not address.startswith(("http://", "https://")):
        raise InputError(f"The address of a dashboard begins with http:// or https://, not {address[:60]!r}. Give it as the browser shows it.")
    if form in ("png", "svg") and out.suffix in (".png", ".svg"):
        raise InputError(f"Pictures come in light and dark, each a file of its own. Give a folder or a .zip, such as {out.with_suffix('')}.")
    is_file = FORMATS[form].is_file or out.suffix in (".csv", ".zip")
    if is_file and out.is_dir():
        raise InputError(f"{out} is a folder, and {form} is one file. Give a file, such as {out / ('findings.' + form)}.")
    if not is_file and out.exists() and not _is_ours(out):
        raise InputError(f"{out} holds something else, which would be lost. Give a new folder, an empty one, or one that an export made.")


def _is_ours(folder: Path) -> bool:
    """Whether a folder may be replaced: it is empty, or an export made it."""
    return folder.is_dir() and (not any(folder.iterdir()) or (folder / _MARK).is_file())


_MARK = ".personascope-export"


def _bytes(kept: Sequence[Kept], form: Format, suffix: str, address: str) -> bytes:
    title = title_of([one.finding for one in kept])
    if form == "html":
        return document(kept, title=title, address=address).encode("utf-8", "replace")
    if form == "pptx":
        from backend.reports.slides import presentation

        return presentation(kept, title=title)
    if suffix == ".csv":
        return stacked_csv([(one.finding, one.answers) for one in kept]).encode("utf-8", "replace")
    with tempfile.TemporaryDirectory(prefix="personascope-") as place:
        folder = Path(place) / "findings"
        folder.mkdir()
        _fill(kept, form, folder, address)
        return Path(shutil.make_archive(str(Path(place) / "packed"), "zip", folder)).read_bytes()


def _fill(kept: Sequence[Kept], form: Format, folder: Path, address: str) -> None:
    from backend.reports import site

    (folder / _MARK).write_text("Made by: python -m backend findings export. An export may replace this folder.\n", "utf-8")
    if form == "csv":
        site.write_tables(kept, folder)
    elif form == "static":
        site.write_site(kept, folder, title="Findings" if len(kept) > 1 else kept[0].finding.title, address=address)
    else:
        site.write_pictures(kept, folder, (form,))
