"""Where things lie: the checkout, the user's data folder, the weights cache; and writing without half files."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backend.errors import DiskError

CHECKOUT = Path(__file__).resolve().parent.parent
CACHED_RESULTS = CHECKOUT / "cached_results"


def home() -> Path:
    """The user's own results and organisms: ``PERSONASCOPE_HOME``, else ``~/.personascope``."""
    return Path(os.environ.get("PERSONASCOPE_HOME") or Path.home() / ".personascope").expanduser()


def weights_cache() -> Path:
    """Converted base models: ``PERSONASCOPE_WEIGHTS``, else ``$XDG_CACHE_HOME/personascope`` or ``~/.cache/personascope``."""
    if chosen := os.environ.get("PERSONASCOPE_WEIGHTS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "personascope"


@contextlib.contextmanager
def told_disk_faults(doing: str) -> Iterator[None]:
    """Turn a full or read-only disk inside the block into a ``DiskError`` that says what was being done."""
    try:
        yield
    except OSError as fault:
        where = f" ({fault.filename})" if fault.filename else ""
        if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskError(f"No space left while {doing}{where}. Free some space and run it again; nothing half-written was kept.") from fault
        if fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DiskError(f"Not allowed to write while {doing}{where}. Set PERSONASCOPE_HOME and PERSONASCOPE_WEIGHTS to folders you own.") from fault
        raise


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Fill a folder beside ``final``, then put it in place in one step, replacing what was there.

    A kill inside the block leaves ``final`` as it was. What earlier kills left behind is swept away first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(f".{final.name}.*.part"):
        if not _is_alive(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{final.name}.{os.getpid()}.", suffix=".part", dir=final.parent))
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        part.chmod(0o755)
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{final.name}.{os.getpid()}.", suffix=".part", dir=final.parent))
            final.rename(old / final.name)
            part.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as handle:
        part = Path(handle.name)
        try:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    part.chmod(0o644)
    part.replace(path)


def _is_alive(part: Path) -> bool:
    """Whether the process that began ``part`` still runs (its number stands in the name)."""
    owner = part.name.split(".")[-3]
    return owner.isdigit() and int(owner) != os.getpid() and Path(f"/proc/{owner}").exists()
