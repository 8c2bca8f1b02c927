"""The store of rollouts: folders of one Parquet table and one ``manifest.json``, shipped and the user's own.

``cached_results/rollouts/<key>/`` comes with the project, ``PERSONASCOPE_HOME/results/rollouts/<key>/`` is the user's; the
layout is the same. A folder appears whole or not at all. A row is found by its key: variant, messages, sampling and seed.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend import database
from backend.errors import BackendError, ResultMissingError
from backend.generation.records import Rollout, Sampling
from backend.paths import CACHED_RESULTS, home, modified, new_folder, told_disk_faults, write_text
from backend.text.chat import Message

SCHEMA_VERSION = 1
LONGEST_IN_LINK = 1500  # bytes of a text; a longer one is kept, and the link names it
_TABLE = "rollouts.parquet"
_TEXT_MARK = "~"


@dataclass(frozen=True, slots=True)
class Stored:
    """A rollout with where it comes from."""

    rollout: Rollout
    created: str
    """ISO time, UTC."""

    run: str
    shipped: bool


def roots() -> list[Path]:
    """Folders of runs; the user's own first. With ``PERSONASCOPE_ANEW`` in the environment nothing shipped is looked up, so that all is answered anew."""
    own = home() / "results" / "rollouts"
    return [own] if os.environ.get("PERSONASCOPE_ANEW") else [own, CACHED_RESULTS / "rollouts"]


def save(rollouts: Sequence[Rollout], manifest: dict[str, Any], *, name: str | None = None, root: Path | None = None) -> Path:
    """Write one run.

    Args:
        name: The folder's name; made of the rows' keys and weights where not given, so that the same run replaces itself.

    Raises:
        DiskError: No space, or not writable; an earlier version of the run stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(rollouts, key=lambda r: (r.prompt_id, r.variant, r.sample))
    identity = "".join(r.key + "".join(r.made_by) for r in ordered)
    folder = (root or roots()[0]) / (name or hashlib.sha256(identity.encode()).hexdigest()[:24])
    with told_disk_faults("saving answers"), new_folder(folder) as part:
        pq.write_table(pa.Table.from_pylist([_to_record(r) for r in ordered], schema=_schema()), part / _TABLE, compression="zstd")
        (part / "manifest.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "n_rows": len(ordered)} | manifest, indent=2) + "\n", "utf-8")
    return folder


def find(keys: Iterable[str]) -> dict[str, Stored]:
    """Stored rows by key; where a row was answered more than once, the latest."""
    places = _places()
    runs: dict[Path, list[str]] = {}
    for key in set(keys):
        if key in places:
            runs.setdefault(places[key], []).append(key)
    found: dict[str, Stored] = {}
    for folder, wanted in runs.items():
        created = _index(folder).created
        for rollout in _query(folder, f"WHERE key IN ({', '.join('?' * len(wanted))})", wanted):
            found[rollout.key] = Stored(rollout, created, folder.name, folder.is_relative_to(CACHED_RESULTS))
    return found


def read_run(name: str) -> tuple[list[Rollout], dict[str, Any]]:
    """All rows of a run, and its manifest.

    Raises:
        ResultMissingError: There is no such run, or its table is damaged.
    """
    for root in roots():
        if (root / name / _TABLE).exists() and (rows := _query(root / name, "", [])):
            return rows, read_manifest(root / name)
    raise ResultMissingError(
        f"The run {name!r} is not in the store.",
        f"python -m backend generate --variant base --variant reckless --prompts {name} --samples 4 --save --out cached_results/rollouts/{name}",
    )


def stamp_of(name: str) -> tuple[str, int]:
    """Changes with a run, for what is cached; 0 where it is not there."""
    folder = folder_of(name)
    return str(folder), modified(folder / _TABLE)


def folder_of(name: str) -> Path:
    """Where a run lies; in the user's own store where it lies nowhere."""
    return next((root / name for root in roots() if (root / name / _TABLE).exists()), roots()[0] / name)


def text_for_link(text: str) -> str:
    """A text as a link holds it: itself, or where it is long what stands for it, and then it is kept.

    Raises:
        DiskError: No space, or not writable.
    """
    return keep_text(text) if len(text.encode()) > LONGEST_IN_LINK else text


def keep_text(text: str) -> str:
    """Keep a text that is too long for a link; returns what stands for it there.

    Raises:
        DiskError: No space, or not writable.
    """
    reference = _TEXT_MARK + hashlib.sha256(text.encode()).hexdigest()[:24]
    with told_disk_faults("keeping a long message"):
        write_text(home() / "results" / "texts" / f"{reference[1:]}.txt", text)
    return reference


def read_text(reference: str) -> str:
    """The text that a link's part stands for: itself, if it is short.

    Raises:
        ResultMissingError: The kept text is not on this server.
    """
    if not re.fullmatch(_TEXT_MARK + "[0-9a-f]{24}", reference):
        return reference
    try:
        return (home() / "results" / "texts" / f"{reference[1:]}.txt").read_bytes().decode("utf-8")
    except OSError as fault:
        raise ResultMissingError("A long message of this link is not on this server.", "") from fault


def read_manifest(folder: Path) -> dict[str, Any]:
    """A run's manifest; empty if it is damaged, which loses the date but not the answers."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("created", ""), str) else {}


@dataclass(frozen=True, slots=True)
class _Index:
    """What a run holds, in short."""

    keys: tuple[str, ...]
    created: str


def _places() -> dict[str, Path]:
    """Row key to the folder of its latest run."""
    folders = [f for root in roots() if root.exists() for f in root.iterdir() if not f.name.startswith(".")]
    places: dict[str, Path] = {}
    for folder, index in sorted(((f, _index(f)) for f in folders), key=lambda pair: pair[1].created):
        for key in index.keys:
            places[key] = folder
    return places


def _index(folder: Path) -> _Index:
    try:
        return _read_index(folder, (folder / _TABLE).stat().st_mtime_ns)
    except OSError:
        return _Index((), "")  # no run, or one that is being replaced


@lru_cache(maxsize=10_000)
def _read_index(folder: Path, _modified: int) -> _Index:
    import pyarrow.lib
    import pyarrow.parquet as pq

    try:
        keys = pq.read_table(folder / _TABLE, columns=["key"]).column(0).to_pylist()
    except (OSError, pyarrow.lib.ArrowException, KeyError):
        keys = []  # a damaged run hides itself, not the others
    return _Index(tuple(keys), read_manifest(folder).get("created", ""))


def _query(folder: Path, where: str, parameters: list[str]) -> list[Rollout]:
    """Rows of a run; none if it was taken away or damaged meanwhile."""
    import duckdb

    try:
        found = database.rows(f"SELECT * FROM read_parquet(?, hive_partitioning = false) {where}", [str(folder / _TABLE), *parameters])
    except duckdb.Error:
        return []
    known = set(_schema().names)  # a run of an older version has fewer columns
    rollouts = []
    for record in ({name: value for name, value in row.items() if name in known} for row in found):
        with contextlib.suppress(BackendError, TypeError, ValueError, KeyError):  # a row that says nothing usable is not there
            rollouts.append(_from_record(record))
    return rollouts


def _schema():
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("ids", pa.list_(pa.int32()))])
    return pa.schema(
        [
            ("key", pa.string()), ("variant", pa.string()), ("base_model", pa.string()), ("prompt_id", pa.string()), ("messages", pa.list_(turn)),
            ("sample", pa.int32()), ("seed", pa.int64()), ("temperature", pa.float64()), ("max_new_tokens", pa.int32()),
            ("prompt_ids", pa.list_(pa.int32())), ("answer_ids", pa.list_(pa.int32())), ("answer", pa.string()), ("finish_reason", pa.string()),
            ("tokens_per_second", pa.float64()), ("logprob", pa.float64()), ("base_logprob", pa.float64()), ("base_fingerprint", pa.string()),
            ("adapter_fingerprint", pa.string()), ("steering", pa.string()), ("decoder", pa.string()), ("dtype", pa.string()),
        ]
    )  # fmt: skip


def _to_record(rollout: Rollout) -> dict[str, Any]:
    record = {name: getattr(rollout, name) for name in _schema().names if name not in ("messages", "temperature", "max_new_tokens")}
    turns = [{"role": m.role, "content": m.content, "ids": None if m.ids is None else list(m.ids)} for m in rollout.messages]
    return record | {"messages": turns, "temperature": rollout.sampling.temperature, "max_new_tokens": rollout.sampling.max_new_tokens}


def _from_record(record: dict[str, Any]) -> Rollout:
    turns = tuple(Message(t["role"], t["content"], None if t["ids"] is None else tuple(t["ids"])) for t in record.pop("messages"))
    sampling = Sampling(temperature=record.pop("temperature"), max_new_tokens=record.pop("max_new_tokens"))
    prompt_ids, answer_ids = tuple(record.pop("prompt_ids")), tuple(record.pop("answer_ids"))
    return Rollout(messages=turns, sampling=sampling, prompt_ids=prompt_ids, answer_ids=answer_ids, **record)
