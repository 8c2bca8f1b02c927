"""One trainer at a time in a run's folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from backend.errors import DiskError, InputError
from backend.paths import told_disk_faults


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold a lock in a run's folder, which is made where it is not there, against other processes and threads. The lock's file goes with it.

    Raises:
        InputError: Somebody else holds it.
        DiskError: No space, or not writable.
    """
    mine = FileLock(lock, blocking=False, thread_local=False)
    try:
        with told_disk_faults("starting a training run"):
            lock.parent.mkdir(parents=True, exist_ok=True)
            mine.acquire()
    except Timeout as fault:
        raise InputError(f"Another process, or an earlier start of this page, trains in {lock.parent} now. Wait for its end, or stop it there.") from fault
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # before the release, so that a file which is there is nobody's or its holder's
        mine.release()


def is_held(lock: Path) -> bool:
    """Whether somebody is at work there; what a killed process left is swept away."""
    if not lock.exists():
        return False
    try:
        with held(lock):
            return False
    except InputError:
        return True
    except DiskError:  # one can only look
        return False
