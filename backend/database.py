"""Queries over tables in files: one DuckDB in memory for the whole process, because making one takes several times as long as asking it."""

import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _database() -> Any:
    import duckdb

    made = duckdb.connect(config={"enable_external_file_cache": False})  # files are small, and the server's memory is to stay flat
    atexit.register(made.close)
    return made


def rows(query: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    """What a query finds, a row by its columns' names.

    Raises:
        duckdb.Error: A file is missing or damaged, or lacks a column asked for.
    """
    with connection() as own:
        found = own.execute(query, parameters)
        names = [column[0] for column in found.description]
        return [dict(zip(names, values, strict=True)) for values in found.fetchall()]


@contextmanager
def connection() -> Iterator[Any]:
    """A connection of one's own, for any thread; its temporary views go with it."""
    with _database().cursor() as own:
        yield own
