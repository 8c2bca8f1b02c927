"""Findings on disk: a folder each, the user's own and those shipped; in an order that the user may change.

A folder holds ``finding.json`` and, where answers stand behind its numbers, ``answers.parquet``. It appears whole or not at all.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend.errors import BackendError, ConfigError, ResultMissingError
from backend.paths import CACHED_RESULTS, home, mend, new_folder, told_disk_faults, write_text
from backend.reports.records import DAMAGED, Finding, Item, check_words, dumps, from_record

_FILE, _ANSWERS, _ORDER = "finding.json", "answers.parquet", "order.json"
_KEY = re.compile(r"[a-z0-9-]{1,60}")
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is taken for another when read aloud


def roots() -> list[Path]:
    """Folders of findings; the user's own first."""
    return [home() / "results" / "findings", CACHED_RESULTS / "findings"]


def new_key() -> str:
    """Of a finding to be kept."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(10))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(finding: Finding, answers: Sequence[dict[str, Any]] = (), *, root: Path | None = None) -> Path:
    """Keep a finding with the answers behind it (``sources.ANSWER_COLUMNS``).

    Raises:
        InputError: Its words are too many.
        DiskError: No space, or not writable; an earlier state of it stays.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = io.BytesIO()
    if answers:
        pq.write_table(pa.Table.from_pylist(list(answers)), table, compression="zstd")
    return _write(finding, table.getvalue(), root or roots()[0])


def load(key: str) -> Finding:
    """A finding by its key.

    Raises:
        ResultMissingError: There is none.
        ConfigError: Its file is damaged, or of a newer version.
    """
    mend(roots()[0])
    return _load(folder_of(key))


def folder_of(key: str) -> Path:
    """Where a finding lies.

    Raises:
        ResultMissingError: There is none.
    """
    if _KEY.fullmatch(key):
        for root in roots():
            if (root / key / _FILE).is_file():
                return root / key
    raise ResultMissingError(f"There is no finding {key[:60]!r} here.", "python -m backend findings list")


def is_own(key: str) -> bool:
    """Whether it is the user's, to be edited and removed."""
    return folder_of(key).is_relative_to(roots()[0])


def all_findings() -> tuple[list[Finding], list[str]]:
    """All of them in their order, and a sentence for each that cannot be read. Of their items these have kind, title and text alone; ``load`` reads the rest."""
    found: dict[str, Finding] = {}
    faults = []
    mend(roots()[0])
    for root in roots():
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if folder.name in found or not _KEY.fullmatch(folder.name) or (stamp := _stamp(folder / _FILE)) is None:
                continue
            try:
                found[folder.name] = _outline(folder, stamp)
            except BackendError as fault:
                faults.append(f"{folder.name}: {fault}")
    place = {key: n for n, key in enumerate(_order())}
    newest = sorted(found.values(), key=lambda f: f.created, reverse=True)
    return sorted(newest, key=lambda f: place.get(f.key, -1)), faults  # what is not in the order yet comes first


def move(key: str, by: int) -> None:
    """Put a finding earlier (``by`` below 0) or later in the order.

    Raises:
        ResultMissingError: There is none of that key.
        DiskError: No space, or not writable; the order stays.
    """
    folder_of(key)
    keys = [f.key for f in all_findings()[0]]
    at = keys.index(key)
    keys.insert(max(0, min(len(keys), at + by)), keys.pop(at))
    with told_disk_faults("keeping the order of findings"):
        write_text(roots()[0] / _ORDER, json.dumps(keys) + "\n")


def change(key: str, how: Callable[[Finding], Finding]) -> Finding:
    """Say something of a finding anew, the answers kept with it as they are; what is shipped is copied to the user's own first.

    Raises:
        ResultMissingError: There is none.
        InputError: Its words are too many.
        ConfigError: The file of its answers cannot be read; it stays as it was.
        DiskError: No space, or not writable; it stays as it was.
    """
    finding = how(load(key))
    file = folder_of(key) / _ANSWERS
    try:
        kept = file.read_bytes() if file.exists() else b""
    except OSError as fault:
        raise ConfigError(
            f"The answers kept with this finding cannot be read ({fault.strerror}), so nothing was changed. Make {file} readable, then try again."
        ) from fault
    _write(finding, kept, roots()[0])
    return finding


def remove(key: str) -> None:
    """Take away one of the user's own; a shipped one of the same key shows again.

    Raises:
        ResultMissingError: There is none.
        DiskError: Not writable.
    """
    import shutil

    folder = folder_of(key)
    if not is_own(key):
        raise ConfigError("This finding is shipped with PersonaScope; only your own can be removed.")
    with told_disk_faults("removing the finding"):
        shutil.rmtree(folder)


def answers(key: str) -> list[dict[str, Any]]:
    """The answers kept with a finding (``sources.ANSWER_COLUMNS``); none where there are none or their file is damaged."""
    import pyarrow.lib
    import pyarrow.parquet as pq

    try:
        return pq.read_table(folder_of(key) / _ANSWERS).to_pylist()
    except (OSError, pyarrow.lib.ArrowException, ResultMissingError):
        return []


def _write(finding: Finding, answers: bytes, root: Path) -> Path:
    check_words(finding.title, finding.note, finding.tags)
    with told_disk_faults("keeping the finding"), new_folder(root / finding.key) as part:
        (part / _FILE).write_text(dumps(finding), "utf-8")
        if answers:
            (part / _ANSWERS).write_bytes(answers)
    return root / finding.key


def _load(folder: Path) -> Finding:
    try:
        record = json.loads((folder / _FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise ConfigError(DAMAGED) from fault
    return replace(from_record(record), key=folder.name)  # what a file says of its place is not followed


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes when a file does; None where there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=2000)
def _outline(folder: Path, stamp: tuple[int, int]) -> Finding:
    """A finding without pictures and numbers, read again where its file has changed."""
    found = _load(folder)
    return replace(found, items=tuple(Item(kind=item.kind, title=item.title, text=item.text) for item in found.items))


def _order() -> list[str]:
    try:
        keys = json.loads((roots()[0] / _ORDER).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
