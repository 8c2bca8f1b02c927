"""Queries over tables in files: one DuckDB in memory for the whole process, because making one takes several times as long as asking it."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _database() -> Any:
    import duckdb

    made = duckdb.connect(config={"enable_external_file_cache": False})  # files are small, and the server's memory is to stay flat
    atexit.register(made.close)
    return made


@contextmanager
def connection() -> Iterator[Any]:
    """A connection of one's own, for any thread; its temporary views go with it."""
    with _database().cursor() as own:
        yield own
