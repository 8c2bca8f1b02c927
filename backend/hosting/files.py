"""Files made for whoever asks, such as exports: one at a time on a server, and the last ones kept, so that the same is not made again."""

import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.errors import InputError
from backend.paths import CHECKOUT, told_disk_faults

MOST_IN_LINE = 4
"""Files of all visitors together, the one at work included; each that waits holds a thread of the server."""

MOST_KEPT_BYTES = 6_000_000
MOST_SECONDS = 300


class Workshop:
    """One for all visitors of a process; thread-safe."""

    def __init__(self, most_each: int = MOST_IN_LINE) -> None:
        """
        Args:
            most_each: Files that one visitor may have in line.
        """
        self._most_each = most_each
        self._lock = threading.Lock()
        self._at_work = threading.Lock()
        self._in_line: list[str] = []
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def make(self, what: str, work: Callable[[], bytes], *, owner: str) -> bytes:
        """A file, made when its turn comes unless it is kept here.

        Args:
            what: Names the content: the same name always means the same bytes.
            owner: The visitor.

        Raises:
            InputError: Too many wait; nothing is put in line then.
        """
        with self._lock:
            if what in self._kept:
                return self._look_up(what)
            if self._in_line.count(owner) >= self._most_each or len(self._in_line) >= MOST_IN_LINE:
                raise InputError(f"This server is making {len(self._in_line)} other files. Try again in a moment.")
            self._in_line.append(owner)
        try:
            with self._at_work:
                with self._lock:
                    if what in self._kept:  # made while this one waited
                        return self._look_up(what)
                made = work()
                with self._lock:
                    self._keep(what, made)
                return made
        finally:
            with self._lock:
                self._in_line.remove(owner)

    def _look_up(self, what: str) -> bytes:
        self._kept.move_to_end(what)
        return self._kept[what]

    def _keep(self, what: str, made: bytes) -> None:
        self._kept[what] = made
        while sum(map(len, self._kept.values())) > MOST_KEPT_BYTES:
            self._kept.popitem(last=False)


def made_apart(command: Sequence[str], *, suffix: str) -> bytes:
    """The file that a command of ``python -m backend`` writes to its ``--out``.

    It has a process of its own, because what draws pictures would keep some 200 MB of the server's memory for good.

    Args:
        command: Without ``--out``.

    Raises:
        InputError: The command says why it cannot, or it takes too long.
        DiskError: No space for the file.
    """
    with told_disk_faults("making a file"), tempfile.TemporaryDirectory(prefix="personascope-") as folder:
        out = Path(folder) / f"made{suffix}"
        whole = [sys.executable, "-m", "backend", *command, "--out", str(out)]
        try:
            done = subprocess.run(whole, cwd=CHECKOUT, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS, check=False)
        except subprocess.TimeoutExpired as fault:
            raise InputError(f"The file was not ready after {MOST_SECONDS} s. Ask for less at once.") from fault
        if done.returncode:
            raise InputError(done.stderr.strip()[-2000:])
        return out.read_bytes()
