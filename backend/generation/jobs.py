"""Jobs: requests with an unguessable id that go on while pages come and go, and a table of them."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from backend.errors import BackendError
from backend.generation.records import FinishReason, Rollout, Row
from backend.models.records import BaseModel, Organism

if TYPE_CHECKING:
    from torch import Tensor

    from backend.steering.interventions import Intervention

JobState = Literal["queued", "loading", "running", "done", "stopped", "failed"]
_KEPT_AT_ONCE, _KEPT_OF_MANY = 16, 64  # finished rows; of a job of thousands
_MANY = 2000
_KEPT_SECONDS = 20.0
_KEEP = 200  # finished jobs in the table
_KEEP_SECONDS = 3600.0
_ORPHANED_SECONDS = 900.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class RowProgress:
    """One row of a job, as far as it has come. Written by the worker, read by pages."""

    row: Row
    base: BaseModel
    organism: Organism | None
    prompt_ids: tuple[int, ...]
    given_ids: tuple[int, ...] = ()
    """Of a given answer, to be read and not written."""

    capture: tuple[int, ...] = ()
    """Layers whose residual stream is all that is wanted of ``prompt_ids``."""

    on_read: "Callable[[dict[int, Tensor]], None] | None" = None
    """Called in the worker with layer to (n_tokens, d_model)."""

    interventions: "tuple[Intervention, ...]" = ()
    steering: str = ""
    """Mark of the interventions."""

    answer_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    started: float | None = None
    ended: float | None = None
    rollout: Rollout | None = None
    """The finished row, scored; None until then and for rows that were stopped or overflowed."""

    @property
    def n_tokens(self) -> int:
        """Longest that prompt and answer together can become."""
        if self.capture:
            return len(self.prompt_ids)
        return min(self.base.context_length, len(self.prompt_ids) + (len(self.given_ids) or self.row.sampling.max_new_tokens))

    @property
    def tokens_per_second(self) -> float:
        """Of this row, from when work on it began; 0 before the first token."""
        if self.started is None or not self.answer_ids:
            return 0.0
        return len(self.answer_ids) / max(1e-9, (self.ended or time.monotonic()) - self.started)


class Job:
    """One request for answers."""

    def __init__(self, rows: Sequence[RowProgress], on_rollouts: Callable[[list[Rollout]], None] | None, owner: str = "") -> None:
        self.id = secrets.token_urlsafe(16)
        self.owner = owner
        """Whose it is; owners share the machine fairly, whatever the number of their jobs."""
        self.rows = list(rows)
        self.state: JobState = "queued"
        self.message = ""
        """Why it failed, or a warning beside good answers."""
        self.created = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.seen: float | None = None
        """When a page last looked; None for jobs that nobody needs to watch, such as a command's."""
        self.n_started = 0
        """Rows start in their order; those from here on wait."""
        self._on_rollouts = on_rollouts
        self._kept: list[Rollout] = []
        self._kept_since = 0.0
        self._cancel = threading.Event()
        self._finished = threading.Event()

    @property
    def is_live(self) -> bool:
        return self.state in ("queued", "loading", "running")

    @property
    def n_done(self) -> int:
        """Rows that ended."""
        return sum(r.finish_reason is not None for r in self.rows)

    @property
    def n_tokens(self) -> int:
        return sum(len(r.answer_ids) for r in self.rows)

    @property
    def rollouts(self) -> list[Rollout]:
        return [r.rollout for r in self.rows if r.rollout is not None]

    @property
    def seconds_left(self) -> float | None:
        """From the rate so far; None until a row has ended."""
        if self.started is None or not self.n_done or not self.is_live:
            return None
        return (time.monotonic() - self.started) / self.n_done * (len(self.rows) - self.n_done)

    @property
    def is_orphan(self) -> bool:
        """Whether a page once followed this job and none has for a long time."""
        return self.seen is not None and time.monotonic() - self.seen > _ORPHANED_SECONDS

    @property
    def stop_asked(self) -> bool:
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stop at the next token; what has been answered stays."""
        self._cancel.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; False if it did not come in time."""
        return self._finished.wait(timeout)

    def begin_next(self) -> None:
        """Note that the next row is at work now."""
        row = self.rows[self.n_started]
        row.started = time.monotonic()
        self.n_started += 1
        self.started = self.started or row.started
        self.state = "running"

    def stop_rows(self) -> None:
        """Mark all rows that are not answered as stopped."""
        for row in self.rows:
            if row.finish_reason is None:
                row.ended = None if row.started is None else time.monotonic()
                row.finish_reason = "stopped"
        self.n_started = len(self.rows)

    def keep(self, rollout: Rollout) -> None:
        """Take a finished row, to be handed to whoever keeps them some at a time."""
        if not self._kept:
            self._kept_since = time.monotonic()
        self._kept.append(rollout)

    def deliver_if_due(self) -> None:
        """Hand finished rows over once they are many or have waited for long."""
        if len(self._kept) >= (_KEPT_AT_ONCE if len(self.rows) < _MANY else _KEPT_OF_MANY) or (
            self._kept and time.monotonic() - self._kept_since > _KEPT_SECONDS
        ):
            self._deliver()

    def end(self, state: JobState, message: str = "") -> None:
        self._deliver()
        for row in self.rows:
            row.on_read = None  # it may hold what was read
        self.ended = time.monotonic()
        self.message = message or self.message
        self.state = state
        self._finished.set()

    def _deliver(self) -> None:
        """A fault of the keeper does not lose the answers on screen."""
        rollouts, self._kept = self._kept, []
        if self._on_rollouts is None or not rollouts:
            return
        try:
            self._on_rollouts(rollouts)
        except Exception as fault:  # whatever keeps them must not end the model's thread
            if not isinstance(fault, BackendError):
                _log.exception("Answers could not be kept")
            self.message = f"The answers are not saved. {fault}"


class JobTable:
    """Jobs by id; the oldest finished ones go first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            ended = sorted((j for j in self._jobs.values() if not j.is_live), key=lambda j: j.ended or 0.0)
            now = time.monotonic()
            drop = [j for n, j in enumerate(ended) if n < len(ended) - _KEEP or now - (j.ended or now) > _KEEP_SECONDS]
            for old in drop:
                del self._jobs[old.id]
            self._jobs[job.id] = job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def live(self) -> list[Job]:
        return [j for j in list(self._jobs.values()) if j.is_live]
