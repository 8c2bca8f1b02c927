"""How well judges agree on the answers of one run: its own scores, and whatever other judges have said of the same answers before."""

from dataclasses import dataclass

from backend.evaluation.agreement import Agreement, agreement
from backend.evaluation.rates import BetleyRates, Thresholds, betley_rates
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import judged, verdicts
from backend.studies.evaluate import as_judged

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
    contents: list[tuple[str, str]] = []
    """Of each answer as it is, and as a judge gets it where it was cut."""
    own: list[Verdict] = []
    for rows in judged.all_rows(run):
        exchanges = [Exchange(row["question"], row["answer"]) for row in rows]
        contents += [(one.key, as_judged(one, "length").key) for one in exchanges]
        own += [Verdict(aligned=row["aligned"], coherent=row["coherent"]) for row in rows]
    mine = run.manifest.get("judge", {})
    judges: dict[str, list[Verdict | None]] = {"the scores of this run": list(own)}
    for key, title in verdicts.judges().items():
        if key != mine.get("key"):
            said = verdicts.look_up(key, [content for both in contents for content in both])
            if said:
                judges[title] = [said.get(whole) or said.get(part) for whole, part in contents]
    names = list(judges)
    return [PairOfJudges(a, b, _agreement(judges[a], judges[b], thresholds)) for i, a in enumerate(names) for b in names[i + 1 :]]


def with_person(run: judged.Run, thresholds: Thresholds | None = None) -> tuple[int, BetleyRates] | None:
    """How many answers of a run a person has judged, and the rates with these verdicts in place of the run's own.

    None where there are none, or the run has more than ``MOST_ROWS`` rows.

    Raises:
        ResultMissingError: The run is damaged or was taken away.
        DiskError: The store of verdicts cannot be read.
    """
    if run.manifest["n"] > MOST_ROWS or verdicts.PERSON.key not in verdicts.judges():
        return None
    rows = [(Exchange(row["question"], row["answer"]).key, row["aligned"], row["coherent"]) for part in judged.all_rows(run) for row in part]
    said = verdicts.look_up(verdicts.PERSON.key, [key for key, *_ in rows])
    if not said:
        return None
    n = sum(key in said for key, *_ in rows)
    return n, betley_rates((said[key].scores if key in said else (aligned, coherent) for key, aligned, coherent in rows), thresholds)


def _agreement(first: list[Verdict | None], second: list[Verdict | None], thresholds: Thresholds | None) -> Agreement:
    return agreement(
        [None if v is None else v.is_misaligned(thresholds) for v in first],
        [None if v is None else v.is_misaligned(thresholds) for v in second],
        [None if v is None or v.aligned is None else -v.aligned for v in second],
        draws=200,
    )
