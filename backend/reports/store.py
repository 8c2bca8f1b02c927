"""Findings on disk: a folder each, the user's own and those shipped; in an order that the user may change.

A folder holds ``finding.json`` and, where answers stand behind its numbers, ``answers.parquet``. It appears whole or not at all.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.errors import BackendError, ConfigError, ResultMissingError
from backend.paths import CACHED_RESULTS, home, new_folder, told_disk_faults, write_text
from backend.reports.records import Finding, check_words, dumps, from_record

_FILE, _ANSWERS, _ORDER = "finding.json", "answers.parquet", "order.json"
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_words(finding.title, finding.note, finding.tags)
    folder = (root or roots()[0]) / finding.key
    with told_disk_faults("keeping the finding"), new_folder(folder) as part:
        (part / _FILE).write_text(dumps(finding), "utf-8")
        if answers:
            pq.write_table(pa.Table.from_pylist(list(answers)), part / _ANSWERS, compression="zstd")
    return folder


def load(key: str) -> Finding:
    """A finding by its key.

    Raises:
        ResultMissingError: There is none.
        ConfigError: Its file is damaged, or of a newer version.
    """
    return _load(folder_of(key))


def folder_of(key: str) -> Path:
    """Where a finding lies.

    Raises:
        ResultMissingError: There is none.
    """
    if re.fullmatch(r"[a-z0-9-]{1,60}", key):
        for root in roots():
            if (root / key / _FILE).is_file():
                return root / key
    raise ResultMissingError(f"There is no finding {key[:60]!r} here.", "python -m backend findings list")


def is_own(key: str) -> bool:
    """Whether it is the user's, to be edited and removed."""
    return folder_of(key).is_relative_to(roots()[0])


def all_findings() -> tuple[list[Finding], list[str]]:
    """All of them in their order, and a sentence for each that cannot be read."""
    found: dict[str, Finding] = {}
    faults = []
    for root in roots():
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if folder.name in found or not (folder / _FILE).is_file():
                continue
            try:
                found[folder.name] = _load(folder)
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
    """Say something of a finding anew; what is shipped is copied to the user's own first.

    Raises:
        ResultMissingError: There is none.
        InputError: Its words are too many.
        DiskError: No space, or not writable; it stays as it was.
    """
    finding = how(load(key))
    save(finding, answers(key))
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
    except (OSError, pyarrow.lib.ArrowException):
        return []


def _load(folder: Path) -> Finding:
    try:
        record = json.loads((folder / _FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise ConfigError("The file of this finding is damaged. Take it out of the folder, or bring back a copy.") from fault
    return from_record(record)


def _order() -> list[str]:
    try:
        keys = json.loads((roots()[0] / _ORDER).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
