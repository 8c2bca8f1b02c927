"""What commands print: results on standard output (text or JSON), progress and faults on standard error."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import InputError

if TYPE_CHECKING:
    from backend.studies.evaluate import Progress


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Columns under their names, as wide as needed."""
    if not rows:
        return
    cells = [list(rows[0])] + [[str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(sentence: str) -> None:
    """A sentence on progress."""
    print(sentence, file=sys.stderr, flush=True)


def check_out(out: Path) -> None:
    """Raises: InputError, where no file can be written to ``out``; to be asked before the work."""
    try:
        if not out.exists() or out.is_file():
            with tempfile.NamedTemporaryFile(dir=out.absolute().parent, prefix=f".{out.name}."):
                return
    except OSError:
        pass
    raise InputError(f"{out} cannot be written: give a file in a folder that is there and that you may write to.")


def format_seconds(seconds: float | None) -> str:
    """Such as "3 min 20 s"; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_share(share: float | None) -> str:
    """Such as "12.3 %"; "no rate" for None."""
    return "no rate" if share is None else f"{100 * share:.1f} %"


def follow(job: Any, told: Callable[[], str]) -> None:
    """Show a job's progress until it ends; an interrupt stops it and waits for what is at work.

    Args:
        job: A ``generation.jobs.Job``.
        told: How far it is.
    """
    line = ProgressLine()
    try:
        while not job.wait(0.2):
            line.show(f"{job.state}: {told()}, {format_seconds(job.seconds_left)} left")
    except KeyboardInterrupt:
        job.cancel()
        job.wait()
    line.end()


def follow_run(work: Callable[[], Path | None], progress: "Progress", told: Callable[[], str]) -> Path | None:
    """Do something in a thread of its own and show how far it is; an interrupt stops it and waits for what is at work.

    Args:
        progress: What ``work`` notes; its ``stop`` stops it.
        told: How far it is.

    Returns:
        What ``work`` does; None where it was stopped.

    Raises:
        BackendError: What ``work`` raises.
    """
    from backend.studies.evaluate import in_thread

    kept: list[Path | None] = []
    line = ProgressLine()
    thread = in_thread(lambda: kept.append(work()), progress)
    try:
        while not progress.ended.wait(0.3):
            line.show(told())
    except KeyboardInterrupt:
        progress.stop.set()
    thread.join()
    line.end()
    if progress.fault:
        raise progress.fault
    return kept[0]


class ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= 10:
            self._last = now
            say(text)

    def end(self) -> None:
        if self._terminal:
            print(file=sys.stderr)
