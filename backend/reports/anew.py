"""What commands made anew, held against what a finding kept: the answers, what was known of each source with the figures in it, the pictures' numbers and,
where a stored result is still the one of then, the whole of its tables.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.reports import sources
from backend.reports.facts import title_of
from backend.reports.numbers import Held, hold
from backend.reports.records import Finding, Item, Source

Row = dict[str, Any]
_NAMES_A_ROW = ("variant", "question", "question_id", "prompt_id", "sample", "latent", "run", "step", "measure")
_LEFT_OUT = {"row", "tokens_per_second", "rollout", "key"}
"""Columns that are no results: names within a run, and how fast the machine was."""

_SAME_RESULT = ("variant", "organism", "sae", "texts", "directions", "sources", "study")
_SETTINGS = ("prompt_set", "judge", "metric", "samples", "seed", "system", "sampling", "dtype", "doses", "top", "down", "draws")
"""Of several results about the same, the one that shares most of these is meant."""

_NOT_TODAYS = {
    "changed": "today's stored result is another than then; held against the new one is what was kept",
    "gone": "the stored result is gone; held against the new one is what was kept",
    "unknown": "whether the stored result is that of then is not known; held against the new one is what was kept",
}


@dataclass(frozen=True, slots=True)
class Made:
    """What a command made of a source."""

    tables: Mapping[str, list[Row]]
    """By the names of their files."""

    manifest: Row = field(default_factory=dict)


def made_of(source: Source, words: Sequence[str], told: str, results: Path) -> Made | None:
    """What a command that has printed ``told`` made of a source, printed or below ``results``; None where it made no such thing."""
    if words[0] == "generate":
        return Made({"rollouts": json.loads(told)})
    found = []
    for file in sorted((results / source.place.split("/")[0]).glob("*/manifest.json")) if source.place else ():
        with contextlib.suppress(OSError, ValueError):
            about = json.loads(file.read_text("utf-8"))
            if all(about.get(name) == source.manifest.get(name) for name in _SAME_RESULT):
                found.append((sum(about.get(name) == source.manifest.get(name) for name in _SETTINGS), file.parent, about))
    if not found:
        return None
    _, folder, about = max(found, key=lambda one: one[0])
    return Made({file.stem: sources.rows_of(file) for file in _tables(folder)}, about)


def hold_source(source: Source, made: Made, answers: Iterable[Row]) -> tuple[list[Held], str]:
    """A source of a finding, and why its stored result is not held too; empty where it is."""
    title = title_of(source)
    held = []
    if kept := [row for row in answers if row["source"] == source.place]:
        anew = [sources.answer_of(source, row) for name in ("answers", "rollouts") for row in made.tables.get(name, ())]
        held.append(_hold_answers(f"{title}: kept answers", kept, anew))
    if made.manifest:
        held.append(_hold_figures(f"{title}: kept figures", source.manifest, made.manifest))
    state = sources.state(source)
    if state == "same":
        held += _hold_tables(source, made)
    return held, f"{title}: {_NOT_TODAYS[state]}." if state in _NOT_TODAYS else ""


def hold_item(item: Item, made: Iterable[Made]) -> Held | None:
    """A picture's numbers against the rows of the same names in what was made, of several tables the closest; answers against those that say the same. None where
    there are none."""
    kept = [dict(zip(item.columns, row, strict=True)) for row in item.rows]
    if item.kind == "answers" and {"Prompt", "Answer", "Aligned", "Coherent"} <= set(item.columns):
        return _hold_verdicts(item.title, kept, [row for one in made for row in one.tables.get("answers", ())])
    found = [held for one in made for table in one.tables.values() if (held := _hold_rows(item.title, kept, table))]
    return max(found, key=lambda held: len(held.pairs) - len(held.different), default=None)


def hold_printed_answers(finding: Finding, made: Made) -> list[Held]:
    """Answers on the page against those written anew."""
    new = [{"Name": r["variant"], "Prompt": r["messages"][-1]["content"], "Answer": r["answer"]} for r in made.tables["rollouts"]]
    held = []
    for item in finding.items:
        if item.kind == "answers" and "Name" in item.columns:
            kept = [{name: row[item.columns.index(name)] for name in ("Name", "Prompt", "Answer")} for row in item.rows]
            names = {row["Name"] for row in kept}
            held.append(hold(item.title, kept, [row for row in new if row["Name"] in names], by=("Name", "Prompt")))
    return held


def hold_tokens(finding: Finding, told: str) -> list[Held]:
    """Latents' activations on the page against those read anew."""
    values = json.loads(told)["values"]
    held = []
    for item in finding.items:
        drawing = item.drawing or {}
        latent = next((name for name in next(iter(values.values()), {}) if f"latent {name} " in item.title.lower() + " "), None)
        if item.kind != "tokens" or latent is None:
            continue
        panels = [panel for panel in drawing["panels"] if not panel["signed"]]
        kept = [{"place": place, panel["title"]: value} for panel in panels for place, value in enumerate(panel["values"]) if value is not None]
        new = [
            {"place": place, panel["title"]: float(f"{value:.4g}")}
            for panel, (_, of) in zip(panels, values.items(), strict=False) for place, value in enumerate(of[latent]) if panel["values"][place] is not None
        ]  # fmt: skip
        held.append(hold(item.title, kept, new, by=("place",)))
    return held


def _hold_answers(title: str, kept: list[Row], made: list[Row]) -> Held:
    """Those that were kept, by their keys; where they have none, by what they say."""
    by = ("variant", "question", "rollout" if all(row.get("rollout") for row in kept) else "answer")
    columns = dict.fromkeys((*by, "answer", "aligned", "coherent"))
    wanted = {tuple(row[name] for name in by) for row in kept}
    new = [row for row in made if tuple(row[name] for name in by) in wanted]
    return hold(title, *([{name: row[name] for name in columns} for row in rows] for rows in (kept, new)), by=by)


def _hold_verdicts(title: str, kept: list[Row], made: list[Row]) -> Held | None:
    """What was said of answers on the page, by prompt and answer."""
    new = {
        (row.get("question"), row["answer"]): {
            "Prompt": row.get("question"),
            "Answer": row["answer"],
            "Aligned": row.get("aligned"),
            "Coherent": row.get("coherent"),
        }
        for row in made
    }
    then = {(row["Prompt"], row["Answer"]): row for row in kept}
    return hold(title, then.values(), [row for name, row in new.items() if name in then], by=("Prompt", "Answer")) if made else None


def _hold_figures(title: str, kept: Row, made: Row) -> Held:
    """What a manifest says besides when and where: effects, power and baselines of some results, fingerprints of all."""
    left_out = {*sources.CIRCUMSTANCES, "schema_version"}
    first, second = (dict(_flat({name: part for name, part in about.items() if name not in left_out})) for about in (kept, made))
    rows = ([{"figure": name, "value": value} for name, value in of.items() if name in first] for of in (first, second))
    return hold(title, *rows, by=("figure",))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure in a manifest under the way to it."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value, 1):
            yield from _flat(part, f"{name} · {key}" if name else str(key))
    else:
        yield name, value


def _hold_tables(source: Source, made: Made) -> Iterator[Held]:
    """The stored result, which is that of then; of a command that makes a part of it, that part."""
    folder = sources.path_of(source)
    for file in _tables(folder) if folder else ():
        if file.stem in made.tables:
            kept, new = sources.rows_of(file), made.tables[file.stem]
            if folder and new and "key" in new[0] and sources.source_of(folder).command != source.command:
                keys = {row["key"] for row in new}
                kept = [row for row in kept if row["key"] in keys]
            by = [name for name in _NAMES_A_ROW if kept and name in kept[0]]
            yield hold(
                f"{title_of(source)}: {file.stem}", *([{n: v for n, v in row.items() if n not in _LEFT_OUT} for row in rows] for rows in (kept, new)), by=by
            )


def _hold_rows(title: str, kept: list[Row], table: list[Row]) -> Held | None:
    """Numbers of rows that have the same names in both, one row a name."""
    if not kept or not table:
        return None
    by = [name for name in _NAMES_A_ROW if name in kept[0] and name in table[0]]
    numbers = [name for name in kept[0] if name in table[0] and name not in by and any(isinstance(row[name], int | float) for row in kept)]
    names = {tuple(str(row[name]) for name in by) for row in kept}
    new = [row for row in table if tuple(str(row[name]) for name in by) in names]
    if not by or not numbers or not new or len(names) < len(kept) or len(new) > len(names):
        return None
    return hold(title, *([{name: row[name] for name in (*by, *numbers)} for row in rows] for rows in (kept, new)), by=by)


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".parquet", ".csv")) if folder.is_dir() else []
