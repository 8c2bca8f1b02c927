"""Verdicts of the offline judge for what is on screen: those said before from the store, the rest now."""

from collections.abc import Sequence

from backend.judging.offline import OfflineJudge
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import verdicts


def estimate(exchanges: Sequence[Exchange], *, only_known: bool = False) -> list[Verdict]:
    """One verdict an answer.

    Args:
        only_known: Judge nothing now; what has no verdict yet gets an empty one.

    Raises:
        WeightsError: The judge's files are missing or damaged.
        DiskError: The store of verdicts cannot be used.
    """
    judge = OfflineJudge.load()
    if only_known:
        known = verdicts.look_up(judge.about.key, [e.key for e in exchanges])
        return [known.get(e.key) or Verdict(note="not judged") for e in exchanges]
    return [v or Verdict(note="not judged") for v in verdicts.judge_all(judge, exchanges)]
