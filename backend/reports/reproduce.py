"""Making a finding's numbers anew: each source's command is run in a folder of its own, where nothing is in store yet, and what comes out is held
against what was kept, number by number.

Only commands of this program that make results are run, as words, never through a shell; where their files would go is left out.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backend.errors import BackendError, InputError
from backend.paths import CHECKOUT, home
from backend.reports import anew, store
from backend.reports.facts import title_of
from backend.reports.numbers import Held
from backend.reports.records import Finding, Source

State = Literal["running", "done", "failed", "stopped"]
_MAKES = {"generate", "evaluate", "latents", "diff", "sweep", "causal", "study"}


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

    def wait(self) -> None:
        """Until it has ended."""
        while self.state == "running":
            time.sleep(0.1)

    def as_record(self) -> dict[str, Any]:
        """As the command line prints it."""
        told = [
            {"title": h.title, "n": len(h.pairs), "n_equal": len(h.pairs) - len(h.different), "n_only_then": h.n_only_first, "n_only_now": h.n_only_second,
             "different": [{"row": p.row, "column": p.column, "then": p.first, "now": p.second} for p in h.different]}
            for h in self.held
        ]  # fmt: skip
        return {"key": self.finding.key, "state": self.state, "fault": self.fault, "seconds": round(self.seconds, 1), "held": told, "left_out": self.left_out}

    def _run(self) -> None:
        begun = time.monotonic()
        state: State = "done"
        try:
            with _scratch() as place:
                self._work(place)
        except BackendError as fault:
            state, self.fault = "failed", str(fault)
        except OSError as fault:
            state, self.fault = "failed", f"It could not be made anew: {fault.strerror}. Free some space, then try again."
        except Exception as fault:  # else a thread would end unheard, and who waits for it would wait for ever
            state, self.fault = "failed", f"It could not be made anew ({type(fault).__name__}). Run its commands in a shell to see why."
        self.seconds = time.monotonic() - begun
        self.state = "stopped" if state == "failed" and self._stop.is_set() else state

    def _work(self, place: Path) -> None:
        """Each command once, then what it made against what was kept."""
        commands: dict[tuple[str, ...], list[Source]] = {}
        for source in self.finding.sources:
            try:
                commands.setdefault(tuple(checked(source.command)), []).append(source)
            except InputError as fault:
                self.left_out.append(f"{title_of(source)}: {fault}")
        answers = store.answers(self.finding.key)
        made: list[anew.Made] = []
        for words, behind in commands.items():
            told = self._execute(words, place)
            for source in behind:
                if words[0] == "latents":
                    self._note(source, anew.hold_tokens(self.finding, told))
                elif (one := anew.made_of(source, words, told, place / "results")) is None:
                    self.left_out.append(f"{title_of(source)}: the command made no such result, so there is nothing to hold against what was kept.")
                else:
                    made.append(one)
                    held, why = anew.hold_source(source, one, answers)
                    self.left_out += filter(None, [why])
                    self._note(source, held + (anew.hold_printed_answers(self.finding, one) if words[0] == "generate" else []))
        self._items(made)

    def _note(self, source: Source, held: Sequence[Held]) -> None:
        self.held += held
        if not held:
            self.left_out.append(f"{title_of(source)}: made anew, but the finding keeps no answer and no number of it to hold against.")

    def _items(self, made: Sequence[anew.Made]) -> None:
        """The numbers of pictures, where a table that was made has them."""
        told = {held.title for held in self.held}
        unheld = []
        for item in self.finding.items:
            if held := anew.hold_item(item, made):
                self.held.append(held)
            elif item.title not in told and (item.rows or item.drawing):
                unheld.append(f"“{item.title}”")
        if made and unheld:
            self.left_out.append(f"Worked out by the page from what is held here, so not held once more: {', '.join(unheld)}.")

    def _execute(self, words: Sequence[str], place: Path) -> str:
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
        if len(name := word.partition("=")[0]) > 2 and name != "--out" and "--out".startswith(name):
            raise InputError(f"its command shortens --out to {name}, so it was not made anew. Write the option in full.")
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
