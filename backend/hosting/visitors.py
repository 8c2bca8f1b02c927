"""What visitors of a hosted server may ask of its machine, and by what they are told apart.

A visitor is a network address, so fifty tabs, browsers or cleared cookies are still one. The limits of that: people behind one router count as one, and who has many
addresses counts as many; the limits on all together hold for them too.
"""

import contextlib
import ipaddress
import shutil
from pathlib import Path

from backend.errors import InputError
from backend.experiments.live import Training, Trainings
from backend.experiments.records import Run
from backend.generation.jobs import Job
from backend.generation.service import ModelService
from backend.hosting.exposure import off
from backend.paths import home

MOST_WAITING = 12
"""Requests of all visitors together, those at work included."""

MOST_WRITTEN = 2048
"""Tokens that the answers to one request may have together."""

MOST_READ = 32_768
"""Tokens of prompts and texts in one request."""

MOST_KEPT = 1000
"""Requests whose answers can be opened again; of long texts likewise."""


def visitor_of(peer: str | None, forwarded: str) -> str:
    """Who is there, by network address; of IPv6 the network, which one household has as a whole.

    Args:
        peer: The address that the connection comes from; None for this machine.
        forwarded: The header ``X-Forwarded-For``. Proxies write to its right, visitors can make up its left, so the last public address counts, and only where the
            connection itself comes from a private one, a proxy's.
    """
    for text in (peer or "127.0.0.1", *reversed(forwarded.split(","))):
        try:
            address = ipaddress.ip_address(text.strip())
        except ValueError:
            continue
        if address.is_global:
            return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
    return peer or "127.0.0.1"


class VisitorsService(ModelService):
    """The model service for visitors: an owner is a visitor, who has one request for answers and one reading at a time."""

    def _queue(self, job: Job) -> Job:
        """Raises: InputError, where a limit is reached; nothing is put in line then."""
        _check_size(job)
        with self._wake:
            live = [other for other in self.jobs.live() if not other.stop_asked]
            if any(other.owner == job.owner and _is_reading(other) == _is_reading(job) for other in live):
                raise InputError(
                    "A request of yours is at work here already. Wait for its end or stop it; all who come from your network address count as one."
                )
            if len(live) >= MOST_WAITING:
                raise InputError(f"This server is busy: {len(live)} requests are in line. Try again in a minute; stored answers are there all the time.")
            for folder in ("rollouts", "texts"):
                _drop_oldest(home() / "results" / folder)
            return super()._queue(job)


class NoTrainings(Trainings):
    """A hosted server trains nothing."""

    def start(self, run: Run, title: str, *, owner: str = "") -> Training:
        raise InputError(off("Training"))

    def resume(self, key: str, *, owner: str = "") -> Training:
        raise InputError(off("Training"))


def _is_reading(job: Job) -> bool:
    return all(row.capture for row in job.rows)


def _check_size(job: Job) -> None:
    written = sum(row.row.sampling.max_new_tokens for row in job.rows if not row.given_ids and not row.capture)
    read = sum(len(row.prompt_ids) + len(row.given_ids) for row in job.rows)
    if written > MOST_WRITTEN:
        raise InputError(f"This asks for answers of up to {written:,} tokens; here one request may have {MOST_WRITTEN:,}. Choose fewer or shorter answers.")
    if read > MOST_READ:
        raise InputError(f"This has {read:,} tokens to read; here one request may have {MOST_READ:,}. Choose fewer or shorter texts.")


def _drop_oldest(folder: Path) -> None:
    """What was asked long ago makes room; it can be asked again."""
    kept: list[tuple[float, Path]] = []
    for place in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
            kept.append((place.stat().st_mtime, place))
    for _, place in sorted(kept)[:-MOST_KEPT]:
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
