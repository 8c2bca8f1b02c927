"""Tidy tables of a study: a row a run, step and measure, with value, interval, n and unit; the values behind them by prompt or pair."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backend.errors import ResultMissingError
from backend.evaluation.rates import bootstrap_mean, wilson
from backend.experiments.records import Study
from backend.paths import CACHED_RESULTS, home, modified

State = Literal["done", "older", "begun", "not run"]
UNITS = {
    "misaligned": "rate",
    "incoherent": "rate",
    "aligned": "score, 0-100",
    "log_odds": "nats a token",
    "distance": "Frobenius norm",
    "loss": "nats a token",
}
RATES = ("misaligned", "incoherent")
TABLE, VALUES = "table.csv", "values.parquet"
Place = tuple[str, int]
"""A run and a step."""


@dataclass(frozen=True, slots=True)
class Value:
    """One measurement of one prompt's answer, of one pair, or of the texts of one prompt."""

    run: str
    step: int
    measure: str
    unit: str
    """Id of the prompt or pair."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A line of the tidy table."""

    run: str
    step: int
    rows: int
    """Rows seen in training until then."""

    variant: str
    measure: str
    """``misaligned``, ``incoherent``, ``aligned``, ``log_odds``, ``latent/N``, ``projection/ORGANISM``, ``distance``, ``cosine_end``, ``cosine_previous``, ``pc1``, ``pc2``."""

    value: float
    low: float | None
    high: float | None
    """95 %: Wilson of rates, bootstrap over prompts or pairs else; None where it is no estimate."""

    n: int
    unit: str


def summarise(values: Sequence[float], measure: str) -> tuple[float, float | None, float | None]:
    """Value and 95 % interval."""
    if measure in RATES:
        return float(np.mean(values)), *wilson(int(sum(values)), len(values))
    if len(values) == 1:
        return values[0], None, None
    return bootstrap_mean(list(values))


def points(values: Iterable[Value], places: dict[tuple[str, int], tuple[int, str]]) -> list[Point]:
    """The tidy table's lines, in the order of the values; missing values are left out, and n says how many there are.

    Args:
        places: (run, step) to rows seen and variant.
    """
    grouped: dict[tuple[str, int, str], list[float]] = {}
    for one in values:
        grouped.setdefault((one.run, one.step, one.measure), []).append(one.value)
    found = []
    for (run, step, measure), own in grouped.items():
        told = [value for value in own if not np.isnan(value)]
        if not told:
            continue
        value, low, high = summarise(told, measure)
        rows, variant = places[run, step]
        unit = UNITS.get(measure, {"latent": "mean activation", "projection": "share of the mean difference"}.get(measure.split("/")[0], ""))
        found.append(Point(run=run, step=step, rows=rows, variant=variant, measure=measure, value=value, low=low, high=high, n=len(told), unit=unit))
    return found


def as_csv(study: Study, found: Sequence[Point]) -> str:
    """The tidy table as text; the fields in which runs differ are columns of their own."""
    runs = {run.label: run for run in study.runs}
    axes = study.axes
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f.name for f in fields(Point)]
    writer.writerow(["study", *names[:1], *axes, *names[1:]])
    for point in found:
        record = {k: "" if v is None else f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(point).items()}
        own = runs.get(point.run)
        writer.writerow([study.name, point.run, *("" if own is None else getattr(own, axis) for axis in axes), *(record[name] for name in names[1:])])
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Result:
    """A finished study."""

    folder: Path
    manifest: dict[str, Any]
    points: tuple[Point, ...]

    def of(self, run: str, measure: str) -> list[Point]:
        """One run's course."""
        return [p for p in self.points if p.run == run and p.measure == measure]


def folder_of(study: Study) -> Path | None:
    """One's own result if there is one, else the shipped one; one of an older record only where there is no other."""
    found = [place for root in (home() / "results", CACHED_RESULTS) if ((place := root / "studies" / study.name) / TABLE).exists()]
    return next((place for place in found if _manifest(place).get("mark") == study.mark), found[0] if found else None)


def state(study: Study) -> State:
    """``older``: the result is of an older record of the study."""
    folder = folder_of(study)
    if folder is not None:
        return "done" if _manifest(folder).get("mark") == study.mark else "older"
    return "begun" if (home() / "runs" / study.name).exists() else "not run"


def load(study: Study) -> Result:
    """Raises: ResultMissingError: It was not run, or its table is damaged."""
    folder = folder_of(study)
    if folder is not None and (found := _load(folder, (folder / TABLE).stat().st_mtime_ns)):
        return Result(folder, _manifest(folder), found)
    raise ResultMissingError(f"The study {study.title!r} has no result here.", f"python -m backend study run {study.name}")


@lru_cache(maxsize=20)
def _load(folder: Path, _modified: int) -> tuple[Point, ...]:
    names = [f.name for f in fields(Point)]
    try:
        lines = list(csv.DictReader((folder / TABLE).read_text("utf-8").splitlines()))
        return tuple(_point({name: line[name] for name in names}) for line in lines)
    except (OSError, ValueError, KeyError, UnicodeDecodeError):
        return ()


def _point(line: dict[str, str]) -> Point:
    low, high = (None if line[name] == "" else float(line[name]) for name in ("low", "high"))
    return Point(
        run=line["run"], step=int(line["step"]), rows=int(line["rows"]), variant=line["variant"], measure=line["measure"], value=float(line["value"]), low=low, high=high,
        n=int(line["n"]), unit=line["unit"],
    )  # fmt: skip


def values_of(result: Result, measure: str) -> Mapping[Place, Mapping[str, float]]:
    """The values behind one measure by run and step, then by unit; read once, with all others, as long as their file stays.

    Raises:
        ResultMissingError: They are gone or damaged.
    """
    return _values(result.folder, modified(result.folder / VALUES)).get(measure, {})


@lru_cache(maxsize=10)
def _values(folder: Path, _modified: int) -> dict[str, dict[Place, dict[str, float]]]:
    import pyarrow.lib
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / VALUES)
        columns = [table[f.name].to_pylist() for f in fields(Value)]
    except (OSError, KeyError, pyarrow.lib.ArrowException) as fault:
        raise ResultMissingError("The values behind this study are gone or damaged.", f"python -m backend study run {folder.name}") from fault
    found: dict[str, dict[Place, dict[str, float]]] = {}
    for run, step, measure, unit, value in zip(*columns, strict=True):
        found.setdefault(measure, {}).setdefault((run, step), {})[unit] = value
    return found


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
