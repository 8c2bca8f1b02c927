"""Verdicts of the offline judge for what is on screen: those said before from the store and from evaluated runs, the rest now."""

from collections.abc import Sequence

from backend.judging.offline import OfflineJudge
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import judged, verdicts


def estimate(exchanges: Sequence[Exchange], *, only_known: bool = False) -> list[Verdict]:
    """One verdict an answer.

    Args:
        only_known: Judge nothing now; what has no verdict yet gets an empty one.

    Raises:
        WeightsError: The judge's files are missing or damaged.
        DiskError: The store of verdicts cannot be used.
    """
    judge = OfflineJudge.load()
    known = _evaluated(judge.about.key, exchanges)
    rest = [e for e in exchanges if e.key not in known]
    if only_known:
        known |= verdicts.look_up(judge.about.key, [e.key for e in rest])
    elif rest:
        known |= {e.key: v for e, v in zip(rest, verdicts.judge_all(judge, rest), strict=True) if v}
    return [known.get(e.key) or Verdict(note="not judged") for e in exchanges]


def _evaluated(judge_key: str, exchanges: Sequence[Exchange]) -> dict[str, Verdict]:
    """What the same judge said in evaluated runs, by content: shipped answers need no judge at work."""
    asked = sorted({e.question for e in exchanges})
    found: dict[str, Verdict] = {}
    for run in judged.runs("evaluated") if asked else ():
        if run.manifest.get("judge", {}).get("key") == judge_key:
            found |= {Exchange(*place).key: verdict for place, verdict in judged.said_of(run, asked).items()}
    return found
