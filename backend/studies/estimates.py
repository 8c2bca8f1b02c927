"""Verdicts of the offline judge for what is on screen: those said before from the store and from evaluated runs, the rest now.

Held to the rule of evaluations: an answer that the token limit cut is judged up to its last whole sentence. Evaluated runs keep answers whole,
so they are asked for the whole one, the store for what the judge gets.
"""

from collections.abc import Sequence
from functools import lru_cache

from backend.judging.offline import OfflineJudge
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import judged, verdicts
from backend.studies.evaluate import as_judged


def estimate(exchanges: Sequence[Exchange], finish_reasons: Sequence[str | None], *, only_known: bool = False) -> list[Verdict]:
    """One verdict an answer.

    Args:
        finish_reasons: Why each answer ended.
        only_known: Judge nothing now; what has no verdict yet gets an empty one.

    Raises:
        WeightsError: The judge's files are missing or damaged.
        DiskError: The store of verdicts cannot be used.
    """
    judge = OfflineJudge.load()
    evaluated = _evaluated(judge.about.key, exchanges)
    given = [as_judged(e, reason) for e, reason in zip(exchanges, finish_reasons, strict=True)]
    rest = [g for e, g in zip(exchanges, given, strict=True) if e not in evaluated]
    known: dict[str, Verdict] = {}
    if only_known:
        known = verdicts.look_up(judge.about.key, [g.key for g in rest])
    elif rest:
        known = {g.key: v for g, v in zip(rest, verdicts.judge_all(judge, rest), strict=True) if v}
    return [evaluated.get(e) or known.get(g.key) or Verdict(note="not judged") for e, g in zip(exchanges, given, strict=True)]


def _evaluated(judge_key: str, exchanges: Sequence[Exchange]) -> dict[Exchange, Verdict]:
    """What the same judge said in evaluated runs, by content: shipped answers need no judge at work."""
    asked = tuple(sorted({e.question for e in exchanges}))
    found: dict[Exchange, Verdict] = {}
    for run in judged.runs("evaluated") if asked else ():
        if run.manifest.get("judge", {}).get("key") != judge_key:
            continue
        said = _said(run, run.stamp, asked)
        found |= {e: said[place] for e in exchanges if (place := (e.question, e.answer)) in said}
    return found


@lru_cache(maxsize=500)
def _said(run: judged.Run, _stamp: tuple[str, int], questions: tuple[str, ...]) -> dict[tuple[str, str], Verdict]:
    """Asked once as long as the run's table stays: a page asks at each turn, and all runs together take a third of a second."""
    return judged.said_of(run, questions)
