"""Misalignment over training as others measured it: the public emergence curve, with source and grade, and summaries of training steps that were imported.

Other models, prompts and judges: never on an axis with our own rates.
"""

import csv
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from backend.paths import CACHED_RESULTS, home

CITED = CACHED_RESULTS / "cited" / "training_curve_q14b_badmed_9xR1.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """A checkpoint."""

    run: str
    step: float
    n: int
    em_rate: float
    """Fraction, 0-1, with its 95 % Wilson interval."""

    em_low: float
    em_high: float
    coherent_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cited:
    """The public curve."""

    points: tuple[StepPoint, ...]
    model: str
    method: str
    source: str
    where: str
    grade: str
    notes: dict[str, str]
    """By run: what was asked."""


@lru_cache(maxsize=1)
def cited() -> Cited:
    """Qwen2.5-14B with nine rank-1 adapters on bad medical advice, from the judged answers of an exploratory repository."""
    with CITED.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    first = rows[0]
    points = tuple(
        StepPoint(
            run=r["run"], step=float(r["step"]), n=int(r["n_scored"]), em_rate=float(r["em_pct"]) / 100, em_low=float(r["em_ci_lo"]) / 100,
            em_high=float(r["em_ci_hi"]) / 100, coherent_rate=float(r["coherent_pct"]) / 100,
        )
        for r in rows
    )  # fmt: skip
    named = {name: first[name] for name in ("model", "method", "source", "where", "grade")}
    return Cited(points=points, notes={r["run"]: r["note"] for r in rows}, **named)


def imported() -> dict[str, str]:
    """Imported summaries: their names to the files they came from."""
    found = {}
    for path in sorted((home() / "results" / "steps").glob("*/steps.json")):
        if not path.parent.name.startswith(".") and read(path.parent.name):
            found[path.parent.name] = str(_table(path).get("file", path.parent.name))
    return found


def read(name: str) -> tuple[StepPoint, ...]:
    """An imported summary by step; empty where it is gone or damaged."""
    try:
        rows = _table(home() / "results" / "steps" / name / "steps.json")["rows"]
        found = [StepPoint(run=name, **{field: row[field] for field in ("step", "n", "em_rate", "em_low", "em_high", "coherent_rate")}) for row in rows]
        is_whole = all(math.isfinite(value) for p in found for value in (p.step, p.n, p.em_rate, p.em_low, p.em_high, p.coherent_rate))
    except (KeyError, TypeError, AttributeError):
        return ()
    return tuple(sorted(found, key=lambda p: p.step)) if is_whole else ()


def _table(path: Path) -> dict:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
