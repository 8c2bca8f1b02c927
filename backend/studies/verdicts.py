"""Verdicts that were said, by judge and content: a killed run asks nothing twice, and a person's word is kept.

One SQLite file in the user's data folder; each verdict is written as it comes.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backend.errors import DiskError, JudgeError
from backend.judging.verdicts import Exchange, Judge, JudgeAbout, Verdict
from backend.paths import home

PERSON = JudgeAbout(key="person", kind="person", title="A person")
_AT_ONCE = 500  # places in one query


def judge_all(
    judge: Judge, exchanges: Sequence[Exchange], *, on_progress: Callable[[int], None] = lambda n_done: None, stop: threading.Event | None = None
) -> list[Verdict | None]:
    """Verdicts on answers, those said before from the store; None where a stop came first.

    Answers of the same content are judged once.

    Args:
        on_progress: Called with the number of answers that have a verdict.

    Raises:
        JudgeError: The judge cannot judge at all; verdicts that came before are kept.
        DiskError: Verdicts cannot be kept.
    """
    stop = stop or threading.Event()
    places: dict[str, list[int]] = {}
    for place, exchange in enumerate(exchanges):
        places.setdefault(exchange.key, []).append(place)
    introduce(judge.about)
    known = look_up(judge.about.key, list(places))
    n_done = sum(len(places[key]) for key in known)
    on_progress(n_done)
    missing = [key for key in places if key not in known]
    if missing and not stop.is_set():
        with _database() as database:  # open to the end: writing a verdict then takes no time

            def note(place: int, verdict: Verdict) -> None:
                nonlocal n_done
                known[missing[place]] = verdict
                _insert(database, judge.about.key, {missing[place]: verdict})
                n_done += len(places[missing[place]])
                on_progress(n_done)

            try:
                judge.judge([exchanges[places[key][0]] for key in missing], note, stop)
            except JudgeError as fault:
                raise type(fault)(f"{fault} {n_done} of {len(exchanges)} answers have a verdict.") from fault
    return [known.get(exchange.key) for exchange in exchanges]


def introduce(about: JudgeAbout) -> None:
    """Keep a judge's title, so that its verdicts can be told from others'."""
    with _database() as database, database:
        database.execute("INSERT OR REPLACE INTO judges VALUES (?, ?)", [about.key, f"{about.title}, {about.key}" if about.kind == "api" else about.title])


def look_up(judge_key: str, contents: Sequence[str]) -> dict[str, Verdict]:
    """Verdicts of a judge by content key."""
    found: dict[str, Verdict] = {}
    with _database() as database:
        for start in range(0, len(contents), _AT_ONCE):
            part = contents[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(part))
            for key, said in database.execute(f"SELECT content, verdict FROM verdicts WHERE judge = ? AND content IN ({marks})", [judge_key, *part]):
                with contextlib.suppress(ValueError, TypeError):
                    found[key] = Verdict(**json.loads(said))
    return found


def keep(judge_key: str, verdicts: dict[str, Verdict]) -> None:
    """Write verdicts by content key, but for partial ones, which are asked again.

    Raises:
        DiskError: No space, or not writable.
    """
    with _database() as database:
        _insert(database, judge_key, verdicts)


def _insert(database: sqlite3.Connection, judge_key: str, verdicts: dict[str, Verdict]) -> None:
    rows = [(judge_key, key, json.dumps(v.as_json())) for key, v in verdicts.items() if not v.is_partial]
    with database:
        database.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", rows)


def judges() -> dict[str, str]:
    """Judges that have said something here, by key with their titles; a person among them."""
    with _database() as database:
        said = [key for (key,) in database.execute("SELECT DISTINCT judge FROM verdicts")]
        titles = {PERSON.key: PERSON.title} | dict(database.execute("SELECT judge, title FROM judges"))
    return {key: titles.get(key, key) for key in said}


def forget(judge_key: str, content: str) -> None:
    """Take one verdict back."""
    with _database() as database, database:
        database.execute("DELETE FROM verdicts WHERE judge = ? AND content = ?", [judge_key, content])


def _file() -> Path:
    return home() / "results" / "verdicts.sqlite"


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """Raises: DiskError, where the file cannot be opened, read or written."""
    try:
        with contextlib.suppress(OSError):  # the next line says that the file cannot be opened
            _file().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(_file(), timeout=30)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last verdicts, a kill none
            database.execute("CREATE TABLE IF NOT EXISTS verdicts (judge TEXT, content TEXT, verdict TEXT, PRIMARY KEY (judge, content)) WITHOUT ROWID")
            database.execute("CREATE TABLE IF NOT EXISTS judges (judge TEXT PRIMARY KEY, title TEXT) WITHOUT ROWID")
            yield database
    except sqlite3.Error as fault:
        hint = "Free some space" if "full" in str(fault) else f"Move {_file()} away if it is damaged"
        raise DiskError(f"Verdicts cannot be kept in {_file()} ({fault}). {hint}, then run the same again.") from fault
