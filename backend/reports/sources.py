"""Where a finding's numbers came from: stored results named by content, and the answers behind them."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backend import database
from backend.errors import InputError
from backend.paths import CACHED_RESULTS, home
from backend.reports.records import Source

ANSWER_COLUMNS = ("source", "variant", "question", "answer", "aligned", "coherent", "rollout", "drawn")
"""``rollout`` is the answer's key, empty where it has none; ``drawn`` says how many of its source's answers are kept: "all 416", or "333 of 416, by hash"."""

MOST_ANSWERS = 5000
"""Kept with a finding; what does not fit is drawn by hash, so that a rerun is held against the same ones."""

_MANIFEST = "manifest.json"
_TABLES = {".parquet", ".csv", ".safetensors"}
CIRCUMSTANCES = ("created", "machine", "command", "versions")
"""Of a manifest: when and where a result was made, not what came out."""

State = Literal["same", "changed", "gone", "live", "unknown"]
"""Unknown is what an earlier version kept, or could not read."""

SAID: dict[State, str] = {
    "same": "as it was", "changed": "has changed since", "gone": "is gone", "live": "worked out live", "unknown": "may have changed since: kept without a digest",
}  # fmt: skip


def roots() -> list[Path]:
    """Where stored results lie; the user's own first."""
    return [home() / "results", CACHED_RESULTS]


def source_of(place: Path, command: str = "") -> Source:
    """A stored result (a folder with a manifest) or a file of cited figures.

    Args:
        command: Makes the part that a page shows, where that is not all.
    """
    manifest: Any = {}
    if place.is_dir():
        try:
            manifest = json.loads((place / _MANIFEST).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            manifest = {}
    about = manifest if isinstance(manifest, dict) else {}
    return Source(place=_relative(place), digest=digest(place), manifest=about | ({"command": command} if command else {}))


def live_source(**manifest: Any) -> Source:
    """What was worked out for the page and is in no store."""
    return Source(place="", digest="", manifest=manifest)


def path_of(source: Source) -> Path | None:
    """Where it lies today; None where it is gone."""
    if source.place:
        for root in roots():
            with contextlib.suppress(OSError, ValueError):  # no name of a file
                path = (root / source.place).resolve()
                if path.is_relative_to(root.resolve()) and path.exists():
                    return path
    return None


def state(source: Source) -> State:
    """Whether today's data are those of then."""
    if not source.place:
        return "live"
    path = path_of(source)
    if path is None:
        return "gone"
    return "unknown" if not source.digest else "same" if digest(path) == source.digest else "changed"


def digest(place: Path) -> str:
    """Of the tables and manifest of a result, circumstances left out: 16 hex digits; empty where it cannot be read."""
    total = hashlib.sha256()
    try:
        files = sorted(f for f in place.rglob("*") if f.suffix in _TABLES or f.name == _MANIFEST) if place.is_dir() else [place]
        for file in files:
            name = file.relative_to(place).as_posix() if file != place else file.name
            total.update(f"{name}\0".encode() + hashlib.sha256(_content(file)).digest())
    except OSError:
        return ""
    return total.hexdigest()[:16]


def _content(file: Path) -> bytes:
    """What a file says of its result; a manifest in one order, without the circumstances."""
    content = file.read_bytes()
    if file.name == _MANIFEST:
        with contextlib.suppress(ValueError, RecursionError, AttributeError):  # a damaged one counts as it is
            about = {name: part for name, part in json.loads(content).items() if name not in CIRCUMSTANCES}
            return json.dumps(about, sort_keys=True).encode()
    return content


def answers_of(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Answers behind sources (``ANSWER_COLUMNS``), each once: of one that was written in one place and judged in another, the judged one."""
    tables = [_answers(source) for source in sources]
    seen = {row["rollout"] for table in tables if table.is_judged for row in table.rows}
    for table in tables:
        rows, table.rows = table.rows, []
        for row in rows:
            name = (row["rollout"], row["aligned"], row["coherent"]) if table.is_judged else row["rollout"]
            if not row["rollout"] or name not in seen:
                table.rows.append(row)
            seen.add(name)
    room = MOST_ANSWERS
    for n_before, table in enumerate(sorted(tables, key=lambda table: len(table.rows))):
        table.draw(room // (len(tables) - n_before))  # what small ones leave is for the larger
        room -= len(table.rows)
    return [row for table in tables for row in table.rows]


def told_draws(answers: Iterable[Mapping[str, Any]]) -> str:
    """Which sources' answers are kept in part: "Of evaluated/x: 333 of 416 answers, drawn by hash."; empty where all are."""
    drawn = dict.fromkeys((str(row["source"]), str(row["drawn"])) for row in answers if " of " in str(row.get("drawn")))
    return " ".join(f"Of {source}: {said.replace(', ', ' answers, drawn ')}." for source, said in drawn)


def answer_of(source: Source, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a result's table as an answer (``ANSWER_COLUMNS``)."""
    messages = row.get("messages") or [{}]
    told = {
        "source": source.place,
        "variant": row.get("variant") or source.manifest.get("variant") or source.manifest.get("model"),
        "question": row.get("question") or messages[-1].get("content"),
        "answer": row.get("answer"),
        "rollout": row.get("rollout") or row.get("key"),
        "drawn": "",
    }
    return {name: row.get(name) if name in ("aligned", "coherent") else str(told[name] or "") for name in ANSWER_COLUMNS}


def rows_of(file: Path) -> list[dict[str, Any]]:
    """A stored table.

    Raises:
        InputError: It is damaged.
    """
    import duckdb

    reader = "read_parquet(?, hive_partitioning = false)" if file.suffix == ".parquet" else "read_csv(?)"
    try:
        return database.rows(f"SELECT * FROM {reader}", [str(file)])
    except duckdb.Error as fault:
        raise InputError(f"The table {file.name} of {file.parent.name} is damaged. Make it anew.") from fault


@dataclass(slots=True)
class _Answers:
    """Those of one source."""

    rows: list[dict[str, Any]]
    is_judged: bool = False

    def draw(self, most: int) -> None:
        """Leave at most so many, chosen by hash, in the order in which they were."""
        n = len(self.rows)
        if n > most:
            chosen = set(sorted(range(n), key=lambda place: _lot(self.rows[place], place))[:most])
            self.rows = [row for place, row in enumerate(self.rows) if place in chosen]
        self.rows = [row | {"drawn": f"{most:,} of {n:,}, by hash" if n > most else f"all {n:,}"} for row in self.rows]


def _lot(row: Mapping[str, Any], place: int) -> str:
    said = [row["rollout"]] if row["rollout"] else [row["variant"], row["question"], row["answer"], place]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _answers(source: Source) -> _Answers:
    path = path_of(source)
    table = next((path / name for name in ("answers.parquet", "rollouts.parquet") if path and (path / name).is_file()), None)
    try:
        return _Answers([answer_of(source, row) for row in rows_of(table)], table.name == "answers.parquet") if table else _Answers([])
    except InputError:
        return _Answers([])


def _relative(place: Path) -> str:
    resolved = place.resolve()
    root = next((root for root in roots() if resolved.is_relative_to(root.resolve())), None)
    return str(resolved.relative_to(root.resolve())) if root else place.name
