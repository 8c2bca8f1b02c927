"""Making a finding's numbers anew: each source's command is run in a folder of its own, where nothing is in store yet, and what comes out is held
against what was kept, number by number.

Only commands of this program that make results are run, as words, never through a shell; where their files would go is left out.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backend.errors import InputError
from backend.paths import CHECKOUT, home
from backend.reports import sources
from backend.reports.numbers import Held, hold
from backend.reports.records import Finding, Source

State = Literal["running", "done", "failed", "stopped"]
_MAKES = {"generate", "evaluate", "latents", "diff", "sweep", "causal", "study"}
_NAMES_A_ROW = ("row", "variant", "question", "question_id", "prompt_id", "sample", "latent", "run", "step", "measure")
_LEFT_OUT = {"row", "tokens_per_second", "rollout", "key"}
"""Columns that are no results: names within a run, and how fast the machine was."""


@dataclass(slots=True)
class Rerun:
    """A finding's sources, made anew one after the other."""

    finding: Finding
    state: State = "running"
    line: str = "Starting…"
    """What the command at work said last."""

    held: list[Held] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why some sources were not made anew, a sentence each."""

    fault: str = ""
    seconds: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "Rerun":
        threading.Thread(target=self._run, daemon=True, name="reproduce").start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            with _scratch() as place:
                for source in self.finding.sources:
                    self._source(source, place)
            self.state = "done"
        except InputError as fault:
            self.state, self.fault = ("stopped" if self._stop.is_set() else "failed"), str(fault)
        except OSError as fault:
            self.state, self.fault = "failed", f"It could not be made anew: {fault.strerror}. Free some space, then try again."
        finally:
            self.seconds = time.monotonic() - begun

    def _source(self, source: Source, place: Path) -> None:
        title = source.place or "What was read live"
        try:
            words = checked(source.command)
        except InputError as fault:
            self.left_out.append(f"{title}: {fault}")
            return
        told = self._execute(words, place)
        if words[0] == "generate":
            self.held += _answers(self.finding, told)
        elif words[0] == "latents":
            self.held += _tokens(self.finding, told)
        else:
            self._tables(title, source, place)

    def _tables(self, title: str, source: Source, place: Path) -> None:
        kept = sources.path_of(source)
        made = _twin(source, place / "results")
        if kept is None or made is None:
            self.left_out.append(
                f"{title}: {'the stored result is gone' if kept is None else 'the command made no such result'}, so there is nothing to hold against each other."
            )
            return
        if sources.state(source) == "changed":
            self.left_out.append(f"{title}: it has changed since it was kept; held against each other are today's and the new one.")
        for file in sorted(f for f in kept.iterdir() if f.suffix in (".parquet", ".csv")):
            if (made / file.name).is_file():
                first, second = _rows(file), _rows(made / file.name)
                by = [name for name in _NAMES_A_ROW if name != "row" and first and name in first[0]]
                self.held.append(hold(f"{title}: {file.stem}", first, second, by=by))

    def _execute(self, words: list[str], place: Path) -> str:
        """Run one command; what it printed.

        Raises:
            InputError: It failed, or was stopped.
        """
        environment = os.environ | {"PERSONASCOPE_HOME": str(place), "PERSONASCOPE_ANEW": "1"}
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "backend", *words], cwd=CHECKOUT, env=environment, stdout=out, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            watch = threading.Thread(target=self._end_when_stopped, args=(process,), daemon=True)
            watch.start()
            assert process.stderr is not None
            for line in process.stderr:
                self.line = line.strip() or self.line
            code = process.wait()
            out.seek(0)
            if self._stop.is_set():
                raise InputError("Stopped.")
            if code:
                raise InputError(f"The command failed: {self.line}")
            return out.read()

    def _end_when_stopped(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            if self._stop.wait(0.2):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                return


def checked(command: str) -> list[str]:
    """A command's words behind ``python -m backend``, without where its files go, with JSON where that is what is read.

    Raises:
        InputError: It is none that makes a result.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words[:3] != ["python", "-m", "backend"] or len(words) < 4 or words[3] not in _MAKES:
        raise InputError("no command of this program makes it, so it was not made anew.")
    kept = []
    rest = iter(words[3:])
    for word in rest:
        if word == "--out":
            next(rest, None)
        elif not word.startswith("--out=") and word not in ("--json", "--save"):
            kept.append(word)
    return [*kept, "--json"] if kept[0] in ("generate", "latents") else kept


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A home with the user's models, directions and autoencoders, and no results."""
    place = Path(tempfile.mkdtemp(prefix="personascope-"))
    try:
        for entry in home().iterdir() if home().is_dir() else ():
            if entry.name != "results":
                (place / entry.name).symlink_to(entry)
        (place / "results").mkdir()
        for name in ("directions", "texts"):
            if (home() / "results" / name).is_dir():
                (place / "results" / name).symlink_to(home() / "results" / name)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _twin(source: Source, results: Path) -> Path | None:
    """The result that a rerun made of a source: of its kind, about the same."""
    kind = source.place.split("/")[0]
    for folder in sorted((results / kind).iterdir()) if (results / kind).is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            about = json.loads((folder / "manifest.json").read_text("utf-8"))
            if all(about.get(name) == source.manifest.get(name) for name in ("variant", "organism", "sae", "texts", "directions", "sources", "study")):
                return folder
    return None


def _rows(file: Path) -> list[dict[str, Any]]:
    import duckdb

    reader = "read_parquet(?)" if file.suffix == ".parquet" else "read_csv(?)"
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM {reader}", [str(file)])
        names = [column[0] for column in found.description]
        return [{n: v for n, v in zip(names, values, strict=True) if n not in _LEFT_OUT} for values in found.fetchall()]


def _answers(finding: Finding, told: str) -> list[Held]:
    """Answers on the page against those written anew."""
    made = [{"Name": r["variant"], "Prompt": r["messages"][-1]["content"], "Answer": r["answer"]} for r in json.loads(told)]
    held = []
    for item in finding.items:
        if item.kind == "answers" and "Name" in item.columns:
            kept = [{name: row[item.columns.index(name)] for name in ("Name", "Prompt", "Answer")} for row in item.rows]
            names = {row["Name"] for row in kept}
            held.append(hold(item.title, kept, [row for row in made if row["Name"] in names], by=("Name", "Prompt")))
    return held


def _tokens(finding: Finding, told: str) -> list[Held]:
    """Latents' activations on the page against those read anew."""
    made = json.loads(told)
    values = made["values"]
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
