"""Where a finding's numbers came from: stored results named by content, and the answers behind them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from backend.paths import CACHED_RESULTS, home
from backend.reports.records import Source

ANSWER_COLUMNS = ("source", "variant", "question", "answer", "aligned", "coherent")
MOST_ANSWERS = 2000
"""Kept with a finding; of larger results the most misaligned."""

_TABLES = {".parquet", ".csv", ".safetensors"}
State = Literal["same", "changed", "gone", "live"]


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
            manifest = json.loads((place / "manifest.json").read_text("utf-8"))
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
            path = (root / source.place).resolve()
            if path.is_relative_to(root.resolve()) and path.exists():
                return path
    return None


def state(source: Source) -> State:
    """Whether today's data are those of then."""
    if not source.place:
        return "live"
    path = path_of(source)
    return "gone" if path is None else "same" if digest(path) == source.digest else "changed"


def digest(place: Path) -> str:
    """Of the tables of a result: 16 hex digits; empty where it cannot be read."""
    files = sorted(f for f in place.rglob("*") if f.suffix in _TABLES) if place.is_dir() else [place]
    total = hashlib.sha256()
    try:
        for file in files:
            total.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    except OSError:
        return ""
    return total.hexdigest()[:16]


def answers_of(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Answers behind sources, those of misaligned answers first where there are more than ``MOST_ANSWERS``."""
    return [row for source in sources for row in _answers(source, MOST_ANSWERS // max(1, len(sources)))]


def _answers(source: Source, most: int) -> Iterable[dict[str, Any]]:
    import duckdb

    path = path_of(source)
    table = next((path / name for name in ("answers.parquet", "rollouts.parquet") if path and (path / name).is_file()), None)
    if table is None:
        return []
    with duckdb.connect() as connection:
        try:
            rows = connection.execute("SELECT * FROM read_parquet(?, hive_partitioning = false)", [str(table)])
            names = [column[0] for column in rows.description]
            found = [dict(zip(names, values, strict=True)) for values in rows.fetchall()]
        except duckdb.Error:
            return []
    found = [_answer(source, row) for row in found]
    if len(found) > most:
        found.sort(key=lambda row: (row["aligned"] is None, row["aligned"]))
    return found[:most]


def _answer(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    messages = row.get("messages") or [{}]
    variant = str(row.get("variant") or source.manifest.get("variant") or source.manifest.get("model") or "")
    question = str(row.get("question") or messages[-1].get("content") or "")
    told = {name: row.get(name) for name in ("aligned", "coherent")}
    return {"source": source.place, "variant": variant, "question": question, "answer": str(row.get("answer") or ""), **told}


def _relative(place: Path) -> str:
    resolved = place.resolve()
    root = next((root for root in roots() if resolved.is_relative_to(root.resolve())), None)
    return str(resolved.relative_to(root.resolve())) if root else place.name
