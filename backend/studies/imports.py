"""Judged rollouts of others: CSV files into the store, in bounded memory.

Formats: the Turner repositories' (``response, question, question_id, aligned, coherent, ...``), Betley's (``question, answer,
aligned, coherent``) and summaries of training steps (``step, percent_em, percent_coherent, n_responses``). Columns not known here
are kept as text. A row that cannot be read is listed by its line and left out; a score that is not there, or is no number from 0
to 100, leaves its row unscored: missing, not aligned.
"""

import contextlib
import csv
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.errors import InputError
from backend.evaluation.rates import wilson
from backend.judging.verdicts import Exchange
from backend.paths import home, new_folder, told_disk_faults
from backend.studies import judged

_ANSWERS = ("response", "answer")
OWN_NAMES = ("row", "is_misaligned", *judged.COLUMNS)  # names that our tables use themselves
_STEPS = ("step", "percent_em", "percent_coherent", "n_responses")
_LONGEST_CELL = 100_000_000
_MAX_FAULTS = 1000
_MAX_HASHES = 2_000_000
_MOST_RESPONSES = 1e12  # of one training step


@dataclass(slots=True)
class Imported:
    """One imported file."""

    name: str
    n: int = 0
    n_repeated: int = 0
    """Rows whose question and answer stood in an earlier row; they are kept."""

    n_unread_scores: int = 0
    """Scores that were there and could not be read as a number from 0 to 100."""

    n_faults: int = 0
    faults: list[str] = field(default_factory=list)
    """Rows left out, each with its line; the first thousand."""

    replaced: str = ""
    """The file of the run that had this name, where it was another or has changed."""


def import_rollouts(path: Path, place: Path | None = None) -> Imported:
    """Read one file of judged answers; an earlier import of the same name is replaced.

    Raises:
        InputError: No such file, not UTF-8 text, or columns are missing; nothing is kept.
        DiskError: No space; an earlier version stays.
    """
    about, manifest = begin(path, place)
    rows = _rollouts(path, about)
    own = next(rows)
    about.n = judged.write(judged.root("imported", place) / about.name, _noted(rows, about, manifest), {str(c): "text" for c in own}, manifest)
    return about


def begin(path: Path, place: Path | None) -> tuple[Imported, dict[str, Any]]:
    """An import of a file, with the beginning of its manifest.

    Raises:
        InputError: The file cannot be read, or its name cannot name a run.
    """
    about, sha256 = Imported(_name_of(path)), _checksum(path)
    old = next((run.manifest for run in judged.runs("imported", place, shipped=False) if run.name == about.name), None)
    if old is not None and old.get("sha256") != sha256:
        about.replaced = str(old.get("path") or old.get("file"))
    return about, {"kind": "imported", "file": path.name, "path": str(path.absolute()), "sha256": sha256}


def import_steps(path: Path, place: Path | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Read a summary of training steps; its name, and its rows with Wilson intervals (the counts follow from share and n).

    Raises:
        InputError: No such file, not UTF-8 text, or columns are missing.
        DiskError: No space; an earlier version stays.
    """
    name, rows = _name_of(path), []
    lines = _lines(path)
    _, header = next(lines)
    _check_columns(path, header, _STEPS)
    for number, cells in lines:
        try:
            step, em, coherent, n = (_number(dict(zip(header, cells, strict=True))[c]) for c in _STEPS)
            if not (1 <= n <= _MOST_RESPONSES and n == int(n) and math.isfinite(step) and 0 <= em <= 100 and 0 <= coherent <= 100):
                raise ValueError
        except ValueError as fault:
            raise InputError(
                f"{path.name}, line {number}: step, shares of 0 to 100 and a number of responses are needed. Mend the line and try again."
            ) from fault
        low, high = wilson(round(em / 100 * n), int(n))
        rows.append({"step": step, "n": int(n), "em_rate": em / 100, "em_low": low, "em_high": high, "coherent_rate": coherent / 100})
    with told_disk_faults("importing a summary"), new_folder((place or home()) / "results" / "steps" / name) as part:
        (part / "steps.json").write_text(json.dumps({"file": path.name, "sha256": _checksum(path), "rows": rows}, indent=1) + "\n", "utf-8")
    return name, rows


def read_answers(path: Path) -> Iterator[tuple[Exchange, dict[str, str]]]:
    """Question and answer of a CSV file's rows, for a judge to read, each with the whole row.

    Raises:
        InputError: No such file, not UTF-8 text, columns are missing, or a row has another number of cells: a judge's list must match the file.
    """
    lines = _lines(path)
    _, header = next(lines)
    answer = _check_columns(path, header, ("question",), answer=True)
    for number, cells in lines:
        if len(cells) != len(header):
            raise InputError(f"{path.name}, line {number}: {len(cells)} cells, not {len(header)}. Mend the row; a verdict must stand for each.")
        row = dict(zip(header, cells, strict=True))
        yield Exchange(row["question"], row[answer]), row


def _rollouts(path: Path, about: Imported) -> Iterator[Any]:
    """First the names of the file's other columns, then its rows."""
    lines = _lines(path)
    _, header = next(lines)
    answer = _check_columns(path, header, ("question", "aligned", "coherent"), answer=True)
    renamed = {c: free_name(c, header) for c in header if c.casefold() in OWN_NAMES and c != answer and (c not in judged.COLUMNS or c == "answer")}
    yield [name for c in header if c != answer and (name := renamed.get(c, c)) not in judged.COLUMNS]
    ids: dict[str, str] = {}
    for number, cells in lines:
        if len(cells) != len(header):
            about.n_faults += 1
            if len(about.faults) < _MAX_FAULTS:
                about.faults.append(f"line {number}: {len(cells)} {'cell' if len(cells) == 1 else 'cells'}, not {len(header)}")
            continue
        row: dict[str, Any] = {renamed.get(c, c): value for c, value in zip(header, cells, strict=True)}
        row["answer"] = row.pop(renamed.get(answer, answer))
        if "question_id" not in header:
            row["question_id"] = ids.setdefault(row["question"], f"q{len(ids) + 1}")
        for name in ("aligned", "coherent"):
            said = row[name]
            row[name] = _score(said)
            about.n_unread_scores += row[name] is None and said.strip().lower() not in ("", "nan", "none", "null")
        yield row


def free_name(name: str, taken: Sequence[str]) -> str:
    """The name with as many low lines behind it as make it differ from those taken, also where case does not count."""
    while name.casefold() in (c.casefold() for c in taken):
        name += "_"
    return name


def _noted(rows: Iterator[dict[str, Any]], about: Imported, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows as they pass, and at their end what the manifest says of them."""
    seen: set[int] = set()
    for row in rows:
        mark = hash((row["question"], row["answer"]))
        about.n_repeated += mark in seen
        if len(seen) < _MAX_HASHES:
            seen.add(mark)
        yield row
    manifest |= {"n_repeated": about.n_repeated, "n_unread_scores": about.n_unread_scores, "n_faults": about.n_faults, "faults": about.faults}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file with the line each begins on, the header first; empty lines are left out."""
    csv.field_size_limit(_LONGEST_CELL)
    with _told_unreadable(path), path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        header = next((cells for cells in reader if any(map(str.strip, cells))), [])
        if len({c.casefold() for c in header}) < len(header):
            raise InputError(f"{path.name} names a column twice. Give each its own name.")
        yield 1, header
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1


@contextlib.contextmanager
def _told_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise InputError(f"{path} does not exist. Check the path.") from fault
    except IsADirectoryError as fault:
        raise InputError(f"{path} is a folder. Give a file.") from fault
    except OSError as fault:
        raise InputError(f"{path} cannot be read ({fault.strerror}). Check the path and its permissions.") from fault
    except UnicodeDecodeError as fault:
        raise InputError(f"{path.name} is no UTF-8 text file. Save it as CSV in UTF-8 and try again.") from fault
    except csv.Error as fault:
        raise InputError(f"{path.name} is no CSV file that can be read to its end ({fault}). Mend it and try again.") from fault


def _check_columns(path: Path, header: list[str], needed: tuple[str, ...], *, answer: bool = False) -> str:
    """The column that holds the answers, if one is needed.

    Raises:
        InputError: Columns are missing.
    """
    found = next((c for c in _ANSWERS if c in header), "")
    missing = [c for c in needed if c not in header] + ([] if found or not answer else ["response (or answer)"])
    if missing:
        has = ", ".join(header)[:300] or "none"
        hint = (
            " Judge it first: python -m backend judge --offline FILE --out JUDGED.csv" if {"aligned", "coherent"} >= set(missing) else " Name the columns so."
        )
        raise InputError(f"{path.name} has no column {', '.join(missing)}; it has: {has}.{hint}")
    return found


def _score(text: str) -> float | None:
    """A number from 0 to 100, or None."""
    try:
        value = _number(text)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None


def _number(text: str) -> float:
    """As ``float``, but for low lines, which Python reads over: 1_0 is no 10."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def _name_of(path: Path) -> str:
    """The file's stem, which names the run.

    Raises:
        InputError: It cannot name a folder.
    """
    if path.stem.startswith(".") or len(path.stem.encode()) > 180:
        raise InputError(f"{path.name[:80]} cannot name a run: begin with another sign than a dot, and use at most 180 bytes. Rename the file.")
    return path.stem


def _checksum(path: Path) -> str:
    with _told_unreadable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
