"""Findings as files, from a page: made when they are asked for."""

from collections.abc import Sequence


def offer(keys: Sequence[str], *, key: str) -> None:
    """A menu of files of some findings."""
