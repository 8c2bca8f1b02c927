"""The tables of a finding: what each picture is drawn from, and the answers behind it, as CSV and Parquet."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.reports.records import Cell, Finding, Item

if TYPE_CHECKING:
    import pandas as pd

ANSWERS = {"variant": "Variant", "question": "Prompt", "answer": "Answer", "aligned": "Aligned", "coherent": "Coherent", "source": "Source", "drawn": "Kept"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins a formula in some spreadsheet
_ROLES = {"s": "special", "t": "template", "c": "content"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under names."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    """(n_rows, n_columns); None is missing."""


def tables_of(finding: Finding, answers: Sequence[dict[str, Any]]) -> list[Table]:
    """One of each item, and the answers kept with the finding; empty ones left out."""
    found = [table_of(item) for item in finding.items]
    return [table for table in (*found, answers_table(answers)) if table.rows]


def table_of(item: Item) -> Table:
    """The numbers behind an item; of tokens a row each."""
    if item.kind == "tokens" and item.drawing:
        columns, rows = _tokens(item.drawing)
        return Table(item.title, columns, rows)
    return Table(item.title, item.columns, item.rows)


def answers_table(answers: Sequence[dict[str, Any]]) -> Table:
    """What the store gives (``sources.ANSWER_COLUMNS``) under names for readers."""
    return Table("Answers behind the numbers", tuple(ANSWERS.values()), [tuple(row.get(name) for name in ANSWERS) for row in answers])


def slug(title: str, place: int) -> str:
    """A file's name without ending: ``2-rates-of-organisms``."""
    return f"{place}-{re.sub(r'[^a-z0-9]+', '-', title.lower())[:48]}".strip("-")


def csv_text(table: Table) -> str:
    """Comma-separated, numbers in full, missing cells empty. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    return _csv([table.columns, *table.rows])


def frame_csv(frame: "pd.DataFrame") -> str:
    """The same of a table on a page, without its index."""
    return _csv([tuple(frame.columns), *frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None)])


def stacked_csv(findings: Sequence[tuple[Finding, Sequence[dict[str, Any]]]]) -> str:
    """All tables of all findings in one file: the columns of all, and two that say whose a row is."""
    found = [(finding.key, table) for finding, answers in findings for table in tables_of(finding, answers)]
    columns = list(dict.fromkeys(name for _, table in found for name in table.columns))
    lines: list[Sequence[Cell]] = [["Finding", "Table", *columns]]
    for key, table in found:
        places = [table.columns.index(name) if name in table.columns else None for name in columns]
        lines += [[key, table.title, *(None if place is None else row[place] for place in places)] for row in table.rows]
    return _csv(lines)


def write_parquet(table: Table, path: Path) -> None:
    """Numbers as numbers; a column of several kinds as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name if table.columns.index(name) == place else f"{name} ({place + 1})" for place, name in enumerate(table.columns)]
    pq.write_table(
        pa.table([_column([row[place] for row in table.rows]) for place in range(len(names))], names=[_text(name) for name in names]), path, compression="zstd"
    )


def _column(cells: list[Cell]) -> Any:
    import pyarrow as pa

    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds <= {int, float} and len(kinds) == 2:
        return pa.array([None if cell is None else float(cell) for cell in cells])
    if len(kinds) == 1 and kinds != {str}:
        return pa.array(cells)
    return pa.array([None if cell is None else _text(str(cell)) for cell in cells], pa.string())


def _text(text: str) -> str:
    """Half a character, which some texts of models hold, becomes the sign for an unknown one."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _csv(lines: Sequence[Sequence[Cell]]) -> str:
    """With both ends of a line in it, since Python quotes no other: a bare one in a text would begin a row, which could be a formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows([[_inert(cell) for cell in line] for line in lines])
    return out.getvalue()


def _inert(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _tokens(drawing: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """A row a token: place, id, text of its box, role, and its value in each panel."""
    panels = drawing["panels"]
    return ("Position", "Id", "Text", "Role", *(panel["title"] for panel in panels)), [
        (place, drawing["ids"][place], text, role, *(panel["values"][place] for panel in panels)) for place, (text, role) in enumerate(_boxed(drawing))
    ]


def _boxed(drawing: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for text, role, size in zip(drawing["texts"], drawing["roles"], drawing["sizes"], strict=True):
        yield from [(text, _ROLES[role])] * size
