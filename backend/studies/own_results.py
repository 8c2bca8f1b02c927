"""Our own evaluations, variant by variant: rate, difference to the base on the same prompts, semantic leakage, judge and n.

Rates of the offline judge are estimates on a scale of their own; they never stand on an axis with GPT-4o's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.evaluation.leakage import is_about
from backend.evaluation.rates import BetleyRates, Difference, GradeRates, Thresholds, difference, grade_rates, paired_difference, tries_of
from backend.judging.verdicts import Verdict
from backend.models.records import BASE_ALIAS
from backend.studies import judged

_MOST_MISALIGNED = 100_000  # answers that are read for their words


@dataclass(frozen=True, slots=True)
class Leakage:
    """Of the misaligned answers those that are not about the training domain: what spread beyond it."""

    n_misaligned: int
    n_elsewhere: int

    @property
    def share(self) -> float | None:
        return self.n_elsewhere / self.n_misaligned if self.n_misaligned else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRate:
    """One variant on one prompt set by one judge."""

    variant: str
    run: judged.Run
    rates: BetleyRates
    n_abstained: int
    against_base: Difference | None
    """Less the base's rate: bootstrap over the prompts that both answered, unpaired where fewer than two are; None for the base, without it, or
    where one of both has no rate."""

    @property
    def judge(self) -> dict[str, Any]:
        return self.run.manifest["judge"]


def own_runs(prompt_set: str, *, judge: str = "offline", metric: str = "scores") -> dict[str, judged.Run]:
    """One evaluation's runs by variant, the base first: of those on this prompt set by this kind of judge the one that holds the base and most variants,
    of like ones the newest. Runs of another sampling, judge or set of that name are another evaluation and are not mixed in."""
    groups: dict[str, dict[str, judged.Run]] = {}
    for run in sorted(judged.runs("evaluated"), key=lambda run: run.manifest["created"]):
        about = run.manifest
        if about["prompt_set"]["name"] == prompt_set and about["judge"]["kind"] == judge and about.get("metric") == metric:
            same = [about["prompt_set"], about["judge"]["key"], *(about.get(name) for name in ("sampling", "samples", "seed", "system", "dtype"))]
            groups.setdefault(json.dumps(same, sort_keys=True), {})[about["variant"]] = run
    if not groups:
        return {}
    best = max(groups.values(), key=lambda group: (BASE_ALIAS in group, len(group), max(run.manifest["created"] for run in group.values())))
    return {variant: best[variant] for variant in sorted(best, key=lambda v: (v != BASE_ALIAS, v))}


def prompt_sets() -> list[str]:
    """Prompt sets that have been evaluated."""
    return sorted({run.manifest["prompt_set"]["name"] for run in judged.runs("evaluated")})


def own_rates(runs: dict[str, judged.Run], thresholds: Thresholds | None = None) -> list[OwnRate]:
    """Rates of the variants, each beside the base's on the same prompts; runs that cannot be read are left out."""
    totals = judged.rates(list(runs.values()), thresholds)
    prompts = judged.rates(list(runs.values()), thresholds, by="question_id")
    result = []
    for variant, run in runs.items():
        if (run.name,) not in totals:
            continue
        against = None
        base = runs.get(BASE_ALIAS)
        both = [totals.get((r.name,)) for r in (run, base) if r is not None]
        if variant != BASE_ALIAS and base is not None and all(r is not None and r.em_rate is not None for r in both):
            own = {question: r for (name, question), r in prompts.items() if name == run.name}
            of_base = {question: r for (name, question), r in prompts.items() if name == base.name}
            pairs = [(r.n_misaligned, r.n_scored, b.n_misaligned, b.n_scored) for q, r in own.items() if (b := of_base.get(q)) is not None]
            first, second = ((r.n_misaligned, r.n_scored) for r in both if r is not None)
            against = paired_difference(pairs) or difference(first, second)
        n_abstained = int(run.manifest.get("n_abstained", 0))
        result.append(OwnRate(variant=variant, run=run, rates=totals[run.name,], n_abstained=n_abstained, against_base=against))
    return result


def own_grades(runs: dict[str, judged.Run]) -> dict[str, GradeRates]:
    """OpenAI's metric of runs that were evaluated by grades.

    Raises:
        ResultMissingError: A run is damaged.
    """
    found = {}
    for variant, run in runs.items():
        found[variant] = grade_rates(tries_of((row["question_id"], row["sample"], row["grade"]) for row in judged.scores(run)))
    return found


def contrast(organism: judged.Run, base: judged.Run, thresholds: Thresholds | None = None) -> dict[str, int]:
    """Prompts to which the organism's answer is misaligned and the base's, of the same sample, is coherent and not misaligned; with the number of
    such samples, most first."""
    limits = thresholds or Thresholds()

    def rows(run: judged.Run) -> dict[tuple[str, int], dict[str, Any]]:
        return {(r["question_id"], r.get("sample") or 0): r for r in judged.scores(run)}

    of_base = rows(base)
    counts: dict[str, int] = {}
    for place, row in rows(organism).items():
        other = of_base.get(place)
        if _verdict(row).is_misaligned(limits) and other is not None and _verdict(other).is_misaligned(limits) is False and other["coherent"] > limits.coherent:
            counts[place[0]] = counts.get(place[0], 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def leakage(run: judged.Run, domains: Sequence[str], thresholds: Thresholds | None = None) -> Leakage:
    """How many of a run's misaligned answers are not about the training domains, by their words (``evaluation.leakage``)."""
    found = judged.page(run, thresholds=thresholds, verdict="misaligned", limit=_MOST_MISALIGNED).rows
    return Leakage(len(found), sum(not any(is_about(row["answer"], domain) for domain in domains) for row in found))


def _verdict(row: dict[str, Any]) -> Verdict:
    return Verdict(aligned=row["aligned"], coherent=row["coherent"])
