"""How much of an answer repeats itself: what a model does when it is steered too far, before a judge calls it incoherent."""

from collections.abc import Sequence

_LENGTH = 3


def repetition(ids: Sequence[int]) -> float | None:
    """Share of an answer's three-token sequences that stood in it before, 0-1; None of an answer too short for two.

    Looped text has a share near 1; ordinary answers of a hundred tokens have a few per cent.
    """
    n = len(ids) - _LENGTH + 1
    if n < 2:
        return None
    return 1 - len({tuple(ids[i : i + _LENGTH]) for i in range(n)}) / n
