"""Where things lie: the checkout, the user's data folder, the weights cache; and writing without half files."""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

from backend.errors import DiskError, InputError

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


def as_folder(place: str) -> Path | None:
    """The folder that ``place`` names, or None if it names none."""
    return _existing(place, Path.is_dir)


def as_file(place: str) -> Path | None:
    """The file that ``place`` names, or None if it names none."""
    return _existing(place, Path.is_file)


def _existing(place: str, is_kind: Callable[[Path], bool]) -> Path | None:
    try:
        path = Path(place).expanduser().resolve()
        return path if place and is_kind(path) else None
    except (OSError, RuntimeError, ValueError):  # too long, a ~user who does not exist, a NUL
        return None


@contextlib.contextmanager
def told_disk_faults(doing: str) -> Iterator[None]:
    """Turn a full or read-only disk inside the block into a ``DiskError`` that says what was being done."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        code = fault.errno if isinstance(fault, OSError) else _code_in(str(fault))
        where = f" ({fault.filename})" if isinstance(fault, OSError) and fault.filename else ""
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskError(f"No space left while {doing}{where}. Free some space and run it again; nothing half-written was kept.") from fault
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DiskError(f"Not allowed to write while {doing}{where}. Set PERSONASCOPE_HOME and PERSONASCOPE_WEIGHTS to folders you own.") from fault
        raise


def _code_in(message: str) -> int | None:
    """The operating system's error number that safetensors puts into its message."""
    found = re.search(r"os error (\d+)", message)
    return int(found[1]) if found else None


def mend(folder: Path, name: str | None = None) -> None:
    """Put back what processes that died while they replaced it left aside in ``folder``, and sweep away what they left half-filled.

    Args:
        name: Of the one folder that is looked after; all of them where left out.
    """
    for leftover in list(folder.glob(".*.part")):
        told = re.fullmatch(r"\.(.+)\.(\d+)\.\w+\.part", leftover.name)
        if told is None or name not in (None, told[1]) or psutil.pid_exists(int(told[2])):
            continue
        aside, final = leftover / told[1], folder / told[1]
        if aside.exists() and not final.exists():
            with contextlib.suppress(OSError):  # somebody else was quicker
                aside.rename(final)
        if final.exists() or not aside.exists():
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Fill a folder beside ``final``, then put it in place, replacing the folder that was there.

    A kill inside the block leaves ``final`` as it was; one between the two renames of a replacement leaves the old folder
    aside, and ``mend`` puts it back: the next call does, and so does who lists the folder.

    Raises:
        InputError: Something else stands there.
    """
    _refuse_others(final, stat.S_ISDIR, "folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    mend(final.parent, final.name)

    def aside() -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{final.name}.{os.getpid()}.", suffix=".part", dir=final.parent))

    part = aside()
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        part.chmod(0o755)
        _swap(part, final, aside)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _swap(part: Path, final: Path, aside: Callable[[], Path]) -> None:
    """Put ``part`` in the place of ``final``; tried again where another process replaces it at the same moment."""
    for _ in range(100):
        old = None
        try:
            if final.exists():
                old = aside()
                final.rename(old / final.name)
            part.rename(final)
            return
        except OSError as fault:
            if fault.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not part.exists():
                if old is not None and not final.exists() and (old / final.name).exists():
                    (old / final.name).rename(final)
                raise
        finally:
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
    raise DiskError(f"{final} is replaced by other processes all the time. Stop them and try again.")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Fill a file beside ``path``, then put it in place, replacing the file that was there.

    Raises:
        InputError: Something else stands there, such as a device, which root would replace, too.
    """
    _refuse_others(path, stat.S_ISREG, "regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as filled:
            os.fsync(filled.fileno())
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _refuse_others(path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    with contextlib.suppress(OSError):  # nothing is there, or what follows says why not
        if not is_kind(path.stat().st_mode):
            raise InputError(f"{path} is there, and is no {kind}. Give another place.")


def modified(path: Path) -> int:
    """When a file was changed, in nanoseconds, for what is cached of it; 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    with new_file(path) as part:
        part.write_text(text, "utf-8")
