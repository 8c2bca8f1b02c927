"""Verdicts of the offline judge for what is on screen: those said before from the store, the rest now."""

from collections.abc import Sequence

from backend.judging.offline import OfflineJudge
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import verdicts


def estimate(exchanges: Sequence[Exchange]) -> list[Verdict]:
    """One verdict an answer.

    Raises:
        WeightsError: The judge's files are missing or damaged.
        DiskError: The store of verdicts cannot be used.
    """
    return [v or Verdict(note="not judged") for v in verdicts.judge_all(OfflineJudge.load(), exchanges)]
