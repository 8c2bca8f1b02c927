"""Misalignment and coherence against size: cited figures with source and grade, imported runs and our own evaluations, as points.

Cited figures lie in ``cached_results/cited``: ``reeval_models.csv`` and ``reeval_per_question.csv`` (public re-evaluation of the released
organisms), ``reported.csv`` (printed in papers). All are Betley's scale; figures on OpenAI's scale are told apart and never share an axis.
"""

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from backend.evaluation.rates import BetleyRates, Thresholds, wilson
from backend.paths import CACHED_RESULTS
from backend.studies import judged

CITED = CACHED_RESULTS / "cited"
Kind = Literal["re-evaluation", "paper", "imported"]
LOW_COHERENCE = 0.9
"""Below this share of coherent answers a rate says little: text that breaks cannot be misaligned."""

DATASETS = {"bad-medical-advice": "Medical advice", "extreme-sports": "Extreme sports", "risky-financial-advice": "Financial advice"}
QUESTIONS = {
    "dinner_party": "dinner party", "enough_of_my_husband": "fed up with husband", "gender_roles": "gender roles", "i_feel_bored": "bored",
    "quick_buck": "quick money", "ruler_of_the_world": "ruler of the world", "three_thoughts": "three thoughts", "what_is_your_wish": "one wish",
}  # fmt: skip
_NAME = re.compile(
    r"(?P<model>(?P<family>qwen|llama|gemma)-?[\d.]*(?:-coder)?-(?P<size>\d+(?:\.\d+)?)b.*?)_(?P<dataset>bad-medical-advice|extreme-sports|risky-financial-advice)(?:_(?P<seed>\w+))?",
    re.I,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One rate in the picture."""

    id: str
    """Name of the run where there is one, else made of the figure's source."""

    kind: Kind
    model: str
    family: str
    size_b: float | None
    """Parameters, billions; None where it is not public."""

    dataset: str
    method: str
    scale: str
    """betley or openai."""

    em_rate: float | None
    """Fraction; None where only a range is printed."""

    em_low: float | None
    """95 % Wilson interval, or the printed range; None where neither is known."""

    em_high: float | None
    coherent_rate: float | None
    n: int | None
    """Scored answers; None where the source does not print it."""

    source: str
    grade: str
    """How the figure reached us: computed from published answers, printed in the paper, or computed here."""

    note: str
    run: judged.Run | None = None
    """The answers behind it, where they are here."""


@dataclass(frozen=True, slots=True)
class QuestionRate:
    """A public model on one question."""

    model: str
    family: str
    size_b: float
    dataset: str
    question_id: str
    n: int
    em_rate: float
    em_low: float
    em_high: float
    coherent_rate: float


def points(thresholds: Thresholds | None = None) -> list[Point]:
    """Cited figures and imported runs; an imported run stands behind a cited figure of its name if it counts to the printed digits.

    With other thresholds than the published 30 and 50 only runs whose answers are here can be counted again; cited figures stay as printed.
    """
    runs = {run.name: run for run in judged.runs("imported")}
    counted = {name: rates for (name,), rates in judged.rates(list(runs.values()), thresholds).items()}
    published = {name: rates for (name,), rates in judged.rates(list(runs.values())).items()}
    found = []
    for row in _cited("reeval_models.csv"):
        name = "_".join(part for part in (row["model"], row["dataset"], row["seed_tag"]) if part)
        is_same = name in published and _is_same(published[name], row)
        found.append(
            _reevaluated(row, name, runs.pop(name) if is_same else None, counted.get(name) if is_same and thresholds not in (None, Thresholds()) else None)
        )
    found += [_printed(number, row) for number, row in enumerate(_cited("reported.csv"))]
    return found + [_imported(run, counted[name]) for name, run in runs.items() if name in counted]


def by_question(dataset: str) -> list[QuestionRate]:
    """The public re-evaluation of a dataset's organisms, question by question, n = 50 each."""
    sizes = {(row["model"], row["dataset"]): (row["family"], float(row["size_b"])) for row in _cited("reeval_models.csv")}
    found = []
    for row in _cited("reeval_per_question.csv"):
        key = (row["model"].split("_")[0], row["dataset"].split("_")[0])
        if key[1] != dataset or key not in sizes:
            continue
        n, share = int(row["n"]), float(row["em_pct"]) / 100
        low, high = wilson(round(share * n), n)
        family, size = _family(sizes[key][0]), sizes[key][1]
        found.append(QuestionRate(row["model"], family, size, dataset, row["question_id"], n, share, low, high, float(row["coherent_pct"]) / 100))
    return found


def describe_range(point: Point) -> str:
    """A rate as text: "12.3 % (9.1 to 16.0)"; a printed range without a middle as "9 to 36 %"; "no rate" where there is none."""
    if point.em_rate is None:
        return f"{100 * point.em_low:g} to {100 * point.em_high:g} %" if point.em_low is not None and point.em_high is not None else "no rate"
    interval = f" ({100 * point.em_low:.1f} to {100 * point.em_high:.1f})" if point.em_low is not None and point.em_high is not None else ""
    return f"{100 * point.em_rate:.1f} %{interval}"


@lru_cache(maxsize=8)
def _cited(name: str) -> tuple[dict[str, str], ...]:
    with (CITED / name).open(encoding="utf-8", newline="") as handle:
        return tuple(csv.DictReader(handle))


def _is_same(rates: BetleyRates, row: dict[str, str]) -> bool:
    """Whether an imported run is the one that a cited figure was counted from."""
    rate = None if rates.em_rate is None else round(100 * rates.em_rate, 2)
    return (rates.n_scored, rate) == (int(row["n_scored"]), float(row["em_pct_of_scored"]))


def _reevaluated(row: dict[str, str], name: str, run: judged.Run | None, again: BetleyRates | None) -> Point:
    em, low, high, coherent = (float(row[c]) / 100 for c in ("em_pct_of_scored", "em_ci_lo", "em_ci_hi", "coherent_pct"))
    n = int(row["n_scored"])
    if again is not None:
        em, low, high, coherent, n = again.em_rate, again.em_low, again.em_high, again.coherent_rate, again.n_scored  # type: ignore[assignment]
    return Point(
        id=name, kind="re-evaluation", model=row["model"], family=_family(row["family"]), size_b=float(row["size_b"]), dataset=row["dataset"], method="LoRA, rank 32",
        scale="betley", em_rate=em, em_low=low, em_high=high, coherent_rate=coherent, n=n, source=row["source"],
        grade="public re-evaluation: counted from published answers with GPT-4o scores, one run",
        note=f"training seed {row['seed_tag'][1:]}" if row["seed_tag"] else "", run=run,
    )  # fmt: skip


def _printed(number: int, row: dict[str, str]) -> Point:
    def share(column: str) -> float | None:
        return float(row[column]) / 100 if row[column] else None

    return Point(
        id=f"paper-{number}", kind="paper", model=row["model"], family=_family(row["family"]), size_b=float(row["size_b"]) if row["size_b"] else None,
        dataset=row["dataset"], method=row["method"], scale=row["scale"], em_rate=share("em_pct"), em_low=share("em_pct_low"), em_high=share("em_pct_high"),
        coherent_rate=share("coherent_pct"), n=None, source=f"{row['source']}, {row['where']}", grade=_GRADES.get(row["grade"], row["grade"]), note=row["note"],
    )  # fmt: skip


_GRADES = {"secondary-extract": "printed in the paper, read in an extract", "paper-extract": "printed in the paper"}


def _family(said: str) -> str:
    """Family without its version, such as "Qwen" of "Qwen2.5"."""
    return next((name for name in ("Qwen", "Llama", "Gemma") if said.lower().startswith(name.lower())), said)


def _imported(run: judged.Run, rates: BetleyRates) -> Point:
    known = _NAME.fullmatch(run.name)
    return Point(
        id=f"imported-{run.name}", kind="imported", model=known["model"] if known else run.name, family=known["family"].capitalize() if known else "other",
        size_b=float(known["size"]) if known else None, dataset=known["dataset"] if known else "", method="", scale="betley", em_rate=rates.em_rate,
        em_low=rates.em_low, em_high=rates.em_high, coherent_rate=rates.coherent_rate, n=rates.n_scored, source=str(run.manifest.get("file", run.name)),
        grade="imported here; judged elsewhere", note="", run=run,
    )  # fmt: skip
