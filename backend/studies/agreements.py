"""How well judges agree on the answers of one run: its own scores, and whatever other judges have said of the same answers before."""

from dataclasses import dataclass

from backend.evaluation.agreement import Agreement, agreement
from backend.evaluation.rates import Thresholds
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import judged, verdicts

MOST_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class PairOfJudges:
    """Agreement of one judge with another, misaligned or not; the first is the reference."""

    first: str
    second: str
    found: Agreement


def of_run(run: judged.Run, thresholds: Thresholds | None = None) -> list[PairOfJudges]:
    """Every pair of judges that both judged some of the run's answers; none where the run has more than ``MOST_ROWS`` rows.

    Raises:
        ResultMissingError: The run is damaged or was taken away.
        DiskError: The store of verdicts cannot be read.
    """
    if run.manifest["n"] > MOST_ROWS:
        return []
    contents: list[str] = []
    own: list[Verdict] = []
    for rows in judged.all_rows(run):
        contents += [Exchange(row["question"], row["answer"]).key for row in rows]
        own += [Verdict(aligned=row["aligned"], coherent=row["coherent"]) for row in rows]
    mine = run.manifest.get("judge", {})
    judges: dict[str, list[Verdict | None]] = {"the scores of this run": list(own)}
    for key, title in verdicts.judges().items():
        if key != mine.get("key"):
            said = verdicts.look_up(key, contents)
            if said:
                judges[title] = [said.get(content) for content in contents]
    names = list(judges)
    return [PairOfJudges(a, b, _agreement(judges[a], judges[b], thresholds)) for i, a in enumerate(names) for b in names[i + 1 :]]


def _agreement(first: list[Verdict | None], second: list[Verdict | None], thresholds: Thresholds | None) -> Agreement:
    return agreement(
        [None if v is None else v.is_misaligned(thresholds) for v in first],
        [None if v is None else v.is_misaligned(thresholds) for v in second],
        [None if v is None or v.aligned is None else -v.aligned for v in second],
        draws=200,
    )
