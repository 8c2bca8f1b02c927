"""Tables held against each other, number by number: two findings, or a result and its rerun."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.reports.records import Cell, Item

TOLERANCE = 1e-6
"""Relative; smaller differences are those of floating point."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A number, or a text, here and there."""

    row: str
    """What its row is called: the row's texts."""

    column: str
    first: Cell
    second: Cell

    @property
    def is_equal(self) -> bool:
        a, b = self.first, self.second
        if _is_number(a) and _is_number(b):
            return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)  # type: ignore[arg-type]
        return a == b


@dataclass(frozen=True, slots=True)
class Held:
    """Two tables held against each other."""

    title: str
    pairs: tuple[Pair, ...]
    n_only_first: int
    """Rows that the second has not."""

    n_only_second: int

    @property
    def different(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.is_equal]

    @property
    def is_equal(self) -> bool:
        return not (self.different or self.n_only_first or self.n_only_second)

    def sentence(self, places: tuple[str, str] = ("then", "now")) -> str:
        """Such as "96 of 96 values equal".

        Args:
            places: Where the first table is and where the second, as said of rows that only one of them has.
        """
        n, same = len(self.pairs), len(self.pairs) - len(self.different)
        lacking = [f"{k} {'row' if k == 1 else 'rows'} only {place}" for k, place in zip((self.n_only_first, self.n_only_second), places, strict=True) if k]
        return "; ".join([f"{same:,} of {n:,} values equal", *lacking])


def hold(title: str, first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]], *, by: Sequence[str] = ()) -> Held:
    """Rows of two tables, paired by name and, where that is the same, by their order.

    Args:
        by: Columns that name a row; its texts where left out.
    """
    here, there = _by_name(first, by), _by_name(second, by)
    pairs = [
        Pair(" · ".join(name[0]), column, _cell(one[column]), _cell(there[name][column]))
        for name, one in here.items() if name in there for column in one if column in there[name] and column not in name[2]
    ]  # fmt: skip
    return Held(title, tuple(pairs), sum(name not in there for name in here), sum(name not in here for name in there))


def hold_items(first: Item, second: Item) -> Held:
    """The numbers behind two pictures."""
    return hold(first.title, *([dict(zip(item.columns, row, strict=True)) for row in item.rows] for item in (first, second)))


def paired(first: Sequence[Item], second: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Items of two findings whose numbers are of the same kind and columns: those of the same title, then the others in their order; each once, answers left out."""
    here, there = ([item for item in items if item.rows and item.kind != "answers"] for items in (first, second))
    twins: dict[int, Item] = {}
    for is_by_title in (True, False):
        for place, item in enumerate(here):
            alike = (
                n for n, twin in enumerate(there) if (twin.kind, twin.columns) == (item.kind, item.columns) and (twin.title == item.title or not is_by_title)
            )
            if place not in twins and (found := next(alike, None)) is not None:
                twins[place] = there.pop(found)
    return [(item, twins[place]) for place, item in enumerate(here) if place in twins]


Name = tuple[tuple[str, ...], int, frozenset[str]]
"""Of a row: what names it, which of the rows of that name it is, and the columns that the name stands in."""


def _by_name(rows: Iterable[Mapping[str, Any]], by: Sequence[str]) -> dict[Name, Mapping[str, Any]]:
    found: dict[Name, Mapping[str, Any]] = {}
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        columns = [column for column, value in row.items() if (column in by if by else isinstance(value, str))]
        name = tuple(str(row[column]) for column in columns)
        seen[name] = seen.get(name, -1) + 1
        found[name, seen[name], frozenset(columns)] = row
    return found


def _cell(value: Any) -> Cell:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
