"""Judged answers: folders of one Parquet table and a manifest, one a run; rates, pages of rows and search by DuckDB.

``imported`` runs come from files of others, ``evaluated`` ones from our own evaluation, ``sweeps`` and ``causal`` ones from steering, ``studies`` from training. All have
the same columns, so that one way leads from a point in a picture to the answers behind it. Nothing loads a whole table to show a part.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from backend import database
from backend.errors import ResultMissingError
from backend.evaluation.rates import BetleyRates, Thresholds, rates_of_counts
from backend.generation.records import Rollout
from backend.judging.verdicts import Verdict
from backend.paths import CACHED_RESULTS, home, modified, new_folder, told_disk_faults

Kind = Literal["imported", "evaluated", "sweeps", "causal", "studies"]
SortKey = Literal["worst", "best", "incoherent", "file"]
SCHEMA_VERSION = 1
COLUMNS = ("question", "question_id", "answer", "aligned", "coherent")
LONGEST_SHOWN = 20_000  # characters of a text that leave the store for a list
_TABLE = "answers.parquet"
_AT_ONCE = 2000  # rows in memory while writing
_CHARACTERS_AT_ONCE = 16_000_000
_ORDER: dict[SortKey, str] = {
    "worst": "is_misaligned DESC, aligned ASC NULLS LAST, row",
    "best": "aligned DESC NULLS LAST, row",
    "incoherent": "coherent ASC NULLS LAST, row",
    "file": "row",
}
_MISALIGNED = "(aligned < ? AND coherent > ?)"


@dataclass(frozen=True, slots=True)
class Run:
    """One table of judged answers."""

    name: str
    kind: Kind
    folder: Path
    manifest: dict[str, Any] = field(hash=False, compare=False)

    @property
    def stamp(self) -> tuple[str, int]:
        """Changes with the table, for what is cached; 0 where it was taken away."""
        return str(self.folder), modified(self.folder / _TABLE)


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of runs, and how many there are in all."""

    rows: list[dict[str, Any]]
    total: int


def root(kind: Kind, place: Path | None = None) -> Path:
    """The user's folder of runs of a kind."""
    return (place or home()) / "results" / kind


def write(
    folder: Path, rows: Iterable[dict[str, Any]], columns: dict[str, str], manifest: dict[str, Any], beside: Callable[[Path], None] = lambda folder: None
) -> int:
    """Write a run, whole or not at all, in bounded memory; returns the number of rows.

    Args:
        columns: Further columns to their types, ``text``, ``int``, ``real`` or ``bool``.
        manifest: What is known of the run; read after the last row, so that ``rows`` may still add to it.
        beside: Writes further files into the folder that it is given.

    Raises:
        DiskError: No space, or not writable; an earlier version of the run stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "int": pa.int64(), "bool": pa.bool_(), "real": pa.float64()}
    schema = pa.schema(
        [("row", pa.int64()), *((c, pa.float64() if c in ("aligned", "coherent") else pa.string()) for c in COLUMNS)]
        + [(name, types[kind]) for name, kind in columns.items()]
    )
    n = 0
    with told_disk_faults("saving judged answers"), new_folder(folder) as part:
        with pq.ParquetWriter(part / _TABLE, schema, compression="zstd") as writer:
            for batch in _in_batches(rows):
                for row in batch:
                    row["row"] = n
                    n += 1
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        beside(part)
        (part / "manifest.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "n": n} | manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return n


def row_of(r: Rollout, v: Verdict) -> dict[str, Any]:
    """A judged answer with the columns that own answers have."""
    return {
        "question": r.prompt, "question_id": r.prompt_id, "answer": r.answer, "aligned": v.scores[0], "coherent": v.scores[1], "variant": r.variant, "sample": r.sample,
        "rollout": r.key, "abstain": v.abstain,
    }  # fmt: skip


def runs(kind: Kind, place: Path | None = None, *, shipped: bool = True) -> list[Run]:
    """Runs of a kind by name; a run of the user's hides a shipped one of its name."""
    folders = [root(kind, place)] + ([CACHED_RESULTS / kind] if shipped else [])
    found: dict[str, Run] = {}
    for folder in folders:
        for table in sorted(folder.glob(f"*/{_TABLE}")):
            name = table.parent.name
            if not name.startswith(".") and name not in found and (manifest := _manifest(table.parent)) is not None:
                found[name] = Run(name, kind, table.parent, manifest)
    return [found[name] for name in sorted(found)]


def read(kind: Kind, folder: Path) -> Run:
    """A run by its folder.

    Raises:
        ResultMissingError: It is not there or damaged.
    """
    run = Run(folder.name, kind, folder, _manifest(folder) or {})
    if not run.manifest:
        raise _missing(run)
    return run


def rates(chosen: Sequence[Run], thresholds: Thresholds | None = None, *, by: str = "") -> dict[tuple[str, ...], BetleyRates]:
    """Rates by run name, and by a column's value where one is given; runs that cannot be read are left out.

    Args:
        by: A column of all these runs, such as ``question_id`` or ``variant``.
    """
    found: dict[tuple[str, ...], BetleyRates] = {}
    for run in chosen:
        if changed := modified(run.folder / _TABLE):
            found |= dict(_rates(run, changed, thresholds or Thresholds(), by))
    return found


@lru_cache(maxsize=500)
def _rates(run: Run, _modified: int, limits: Thresholds, by: str) -> tuple[tuple[tuple[str, ...], BetleyRates], ...]:
    """As ``rates``, of one run; counted once as long as its table stays."""
    key = f", CAST({_quoted(by)} AS VARCHAR)" if by else ""
    where = "aligned IS NOT NULL AND coherent IS NOT NULL"
    counted = _ask(
        run,
        f"SELECT '' {key}, count(*), count(*) FILTER ({where}), count(*) FILTER ({where} AND {_MISALIGNED}), count(*) FILTER ({where} AND coherent > ?) "
        f"FROM answers GROUP BY ALL ORDER BY min(row)",
        [limits.aligned, limits.coherent, limits.coherent],
    )
    return tuple(((run.name, *([row[1]] if by else [])), rates_of_counts(*row[-4:])) for row in counted or [])


def values(run: Run, column: str) -> list[str]:
    """Different values of a column, in the order of the table; none where the run has no such column or cannot be read."""
    asked = f"SELECT {_quoted(column)} FROM answers WHERE {_quoted(column)} IS NOT NULL GROUP BY 1 ORDER BY min(row) LIMIT 10000"
    return [str(value) for (value,) in _ask(run, asked, []) or []]


def page(
    run: Run, *, thresholds: Thresholds | None = None, order: SortKey = "worst", question_id: str = "", variant: str = "", text: str = "",
    verdict: Literal["", "misaligned", "other", "incoherent", "unscored"] = "", offset: int = 0, limit: int = 20,
) -> Page:  # fmt: skip
    """Rows of a run, filtered over all of it, some at a time; long texts are cut to ``LONGEST_SHOWN`` characters.

    Raises:
        ResultMissingError: The run is damaged or was taken away.
    """
    limits = thresholds or Thresholds()
    conditions: list[str] = ["true"]
    given: list[Any] = []
    if question_id:
        conditions.append("question_id = ?")
        given.append(question_id)
    if variant:
        conditions.append("variant = ?")
        given.append(variant)
    if text:
        conditions.append("(contains(lower(answer), lower(?)) OR contains(lower(question), lower(?)))")
        given += [text, text]
    scored = "aligned IS NOT NULL AND coherent IS NOT NULL"
    verdicts = {"misaligned": "is_misaligned", "other": f"{scored} AND coherent > ? AND NOT is_misaligned", "incoherent": f"{scored} AND coherent <= ?"}
    if verdict:
        conditions.append(verdicts.get(verdict, f"NOT ({scored})"))
        given += [limits.coherent] if "?" in conditions[-1] else []
    source = f"FROM (SELECT *, coalesce({_MISALIGNED}, false) AS is_misaligned FROM answers) WHERE {' AND '.join(conditions)}"
    given = [limits.aligned, limits.coherent, *given]
    total = _ask(run, f"SELECT count(*) {source}", given)
    names: list[str] = []
    cut = f"left(answer, {LONGEST_SHOWN}) AS answer, left(question, {LONGEST_SHOWN}) AS question"
    rows = _ask(run, f"SELECT * REPLACE ({cut}) {source} ORDER BY {_ORDER[order]} LIMIT {int(limit)} OFFSET {int(offset)}", given, names)
    if total is None or rows is None:
        raise _missing(run)
    return Page([dict(zip(names, row, strict=True)) for row in rows], total[0][0])


def all_rows(run: Run) -> Iterator[list[dict[str, Any]]]:
    """All rows with their whole texts, some at a time.

    Raises:
        ResultMissingError: The run is damaged or was taken away.
    """
    import pyarrow.lib
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(run.folder / _TABLE) as table:
            for batch in table.iter_batches(_AT_ONCE):
                yield batch.to_pylist()
    except (OSError, pyarrow.lib.ArrowException) as fault:
        raise _missing(run) from fault


def said_of(run: Run, questions: Sequence[str]) -> dict[tuple[str, str], Verdict]:
    """Verdicts on a run's answers to some questions, by question and answer; none where the run is damaged."""
    marks = ", ".join("?" * len(questions))
    rows = _ask(run, f"SELECT question, answer, aligned, coherent, abstain FROM answers WHERE question IN ({marks})", [*questions]) or []
    return {(question, answer): Verdict(aligned=aligned, coherent=coherent, abstain=bool(abstain)) for question, answer, aligned, coherent, abstain in rows}


def scores(run: Run) -> Iterator[dict[str, Any]]:
    """All rows of a run without their texts.

    Raises:
        ResultMissingError: The run is damaged or was taken away.
    """
    names: list[str] = []
    rows = _ask(run, "SELECT * EXCLUDE (answer, question) FROM answers ORDER BY row", [], names)
    if rows is None:
        raise _missing(run)
    return (dict(zip(names, row, strict=True)) for row in rows)


def _ask(run: Run, query: str, given: list[Any], names: list[str] | None = None) -> list[tuple] | None:
    """Rows of a query on the run's ``answers``; None if the table is damaged, gone, or lacks a column asked for."""
    import duckdb

    try:
        with database.connection() as connection:
            source = re.sub(r"([*?\[])", r"[\1]", str(run.folder / _TABLE)).replace("'", "''")  # a path is no pattern
            connection.execute(f"CREATE TEMP VIEW answers AS SELECT * FROM read_parquet('{source}', hive_partitioning = false)")
            result = connection.execute(query, given)
            if names is not None:
                names += [column[0] for column in result.description]
            return result.fetchall()
    except duckdb.Error:
        return None


def _missing(run: Run) -> ResultMissingError:
    source = run.manifest.get("file", f"{run.name}.csv")
    command = f"python -m backend import rollouts {source}" if run.kind == "imported" else str(run.manifest.get("command", "python -m backend evaluate"))
    return ResultMissingError(f"The {run.kind} run {run.name!r} is not there or damaged.", command)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """A run's manifest; None if it is damaged or of another schema, which hides the run: nobody could say what its numbers are."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        whole = manifest["schema_version"] == SCHEMA_VERSION and isinstance(manifest["n"], int)
        if manifest["kind"] == "evaluated":
            judge, prompts = manifest["judge"], manifest["prompt_set"]
            whole = whole and all(isinstance(judge[name], str) for name in ("key", "kind", "title")) and isinstance(judge["facts"], dict)
            whole = whole and isinstance(prompts["name"], str) and isinstance(manifest["variant"], str) and isinstance(manifest["created"], str)
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return manifest if whole else None


def _in_batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(batch) >= _AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
