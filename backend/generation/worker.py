"""What the service's thread does: let waiting rows in, fairly, step the open batches, hand answers over.

All rows on one base model in one number format decode in one batch, whoever asked. The next free place goes to the owner
with the fewest rows at work, so a long run yields to a short question; one owner never takes every place.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from backend.errors import BackendError, InputError, MemoryBudgetError
from backend.generation.decoder import Batch, DecoderRow, RowState
from backend.generation.jobs import Job, RowProgress
from backend.generation.records import Rollout
from backend.generation.residents import ResidentAdapter, ResidentBase, Residents
from backend.models.memory import estimate_row
from backend.text.chat import AnswerStream

MAX_RUNNING = 112  # rows; more make each slower and no more tokens in all
MAX_RUNNING_OF_OWNER = 32
MAX_RUNNING_ALONE = 96  # of an owner while no other asks
PATIENCE = 5.0  # seconds that a job waits for room while others go on starting rows
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Running:
    """A row at work: being answered, then read once more by the base model where an organism answered."""

    job: Job
    progress: RowProgress
    adapter: ResidentAdapter | None
    state: RowState
    stream: AnswerStream
    is_answered: bool = False
    logprob: float = 0.0
    """Of the answer under its own variant, nats."""


@dataclass(slots=True, eq=False)
class _Open:
    """A base model with rows at work."""

    base: ResidentBase
    batch: Batch
    rows: list[_Running] = field(default_factory=list)


class Worker:
    """Used by one thread."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._open: list[_Open] = []
        self._refused: dict[Job, float] = {}
        """Jobs whose next row found no room, with the time of the first refusal."""

    def turn(self, jobs: Sequence[Job]) -> None:
        """One token for every row at work, after newcomers were let in.

        Args:
            jobs: All that have not ended, oldest first; those that are through are ended.
        """
        for job in jobs:
            if job.stop_asked or job.is_orphan:
                job.cancel()
                self._stop_unanswered(job)
        self._open = [o for o in self._open if o.rows]
        self._admit([job for job in jobs if not job.stop_asked])
        for opened in list(self._open):
            try:
                for state in opened.batch.step():
                    self._note(opened, state)
            except Exception as fault:  # the worker must live on, whatever a model or driver throws
                _log.exception("A pass failed")
                self._open.remove(opened)
                for job in {id(r.job): r.job for r in opened.rows}.values():
                    self._fail(job, fault)
        self._open = [o for o in self._open if o.rows]
        for job in jobs:
            job.deliver_if_due()
            if job.is_live and job.n_done == len(job.rows) and not self._rows_of(job):
                job.end("stopped" if job.stop_asked else "done")

    def _admit(self, jobs: list[Job]) -> None:
        in_groups = {id(r.job) for o in self._open if not o.base.decoder.refills for r in o.rows}  # a group ends before the job's next begins
        waiting = [job for job in jobs if id(job) not in in_groups and job.n_started < len(job.rows)]
        self._refused = {job: since for job, since in self._refused.items() if job in waiting}
        while waiting and not any(o.batch.is_full for o in self._open):
            running = [r.job for o in self._open for r in o.rows]
            by_owner, by_job = Counter(job.owner for job in running), Counter(map(id, running))
            refused = [job for job in waiting if job in self._refused]
            if refused and not running:
                job = min(refused, key=self._refused.__getitem__)  # whoever has waited longest for room
            else:
                job = min(waiting, key=lambda job: (by_owner[job.owner], by_job[id(job)], job.created))
            most = MAX_RUNNING_ALONE if all(other.owner == job.owner for other in jobs) else MAX_RUNNING_OF_OWNER
            if len(running) >= MAX_RUNNING or by_owner[job.owner] >= most:
                return
            try:
                if self._start(job):
                    self._refused.pop(job, None)
                elif not self._open:
                    raise MemoryBudgetError("This request does not fit into the memory budget. Choose fewer tokens or a smaller model.")
                elif time.monotonic() - self._refused.setdefault(job, time.monotonic()) > PATIENCE:
                    return  # the others end what they have at work, then there is room
                else:
                    waiting.remove(job)
            except Exception as fault:
                if not isinstance(fault, BackendError):
                    _log.exception("A row could not be started")
                self._refused.pop(job, None)
                self._fail(job, fault)
            waiting = [job for job in waiting if job.is_live and job.n_started < len(job.rows)]

    def _start(self, job: Job) -> bool:
        """Put the job's next row to work; False if it must wait for memory that other rows hold."""
        progress = job.rows[job.n_started]
        if job.started is None:
            job.state = "loading"
        at_work = [o.base for o in self._open]
        self._residents.row_bytes = _bytes_of(self._rows_at_work())
        base = self._residents.base(progress.base, at_work)
        adapter = None
        if base is not None and progress.organism is not None:
            in_use = {r.progress.organism.key for o in self._open if o.base is base for r in o.rows if r.progress.organism}
            adapter = self._residents.adapter(base, progress.organism, at_work, in_use)
        opened = next((o for o in self._open if o.base is base), None)
        if base is None or (progress.organism is not None and adapter is None) or not self._has_room(base, progress):
            job.state = "queued" if job.started is None else job.state
            return False
        if opened is None:
            opened = _Open(base, base.decoder.open_batch())
            self._open.append(opened)
        ids = progress.prompt_ids
        row = DecoderRow(ids=ids + progress.given_ids, adapter=adapter and adapter.adapter, interventions=progress.interventions, prompt_length=len(ids))
        if progress.capture:
            row = replace(row, capture=progress.capture)
        elif progress.given_ids:
            row = replace(row, score_from=len(ids))
        else:
            sampling = progress.row.sampling
            row = replace(row, max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, seed=progress.row.seed)
        opened.rows.append(_Running(job, progress, adapter, opened.batch.add(row), base.tokenizer.decode_stream()))
        job.begin_next()
        return True

    def _has_room(self, base: ResidentBase, progress: RowProgress) -> bool:
        """Whether the caches of keys and values have room for one more row; idle models give way to it."""
        rows = self._rows_at_work()
        rows.setdefault(id(base), (base, []))[1].append(progress)
        in_use = {key: {p.organism.key for p in at_work if p.organism} for key, (_, at_work) in rows.items()}
        return self._residents.make_room(_bytes_of(rows) - self._residents.row_bytes, keep=[b for b, _ in rows.values()], keep_adapters=in_use)

    def _rows_at_work(self) -> dict[int, tuple[ResidentBase, list[RowProgress]]]:
        """Bases, by id, with their rows."""
        return {id(o.base): (o.base, [r.progress for r in o.rows]) for o in self._open}

    def _note(self, opened: _Open, state: RowState) -> None:
        """A row got a token, ended its answer, or was read by the base model."""
        running = next((r for r in opened.rows if r.state is state), None)
        if running is None:  # its job failed in this very step
            return
        progress = running.progress
        if state.finish_reason is not None and (unused := [i for i, n in enumerate(state.n_changed) if not n and not _has_no_answer_token(progress, state, i)]):
            self._fail(running.job, _unused(progress, unused[0]))
            return
        if progress.capture:
            if state.finish_reason is not None:
                opened.rows.remove(running)
                self._hand_residuals_over(running)
            return
        if not running.is_answered:
            for token in state.answer_ids[len(progress.answer_ids) :]:
                progress.answer_ids.append(token)
                progress.text += running.stream.step(token)
            if state.finish_reason is None:
                return
            running.is_answered = True
            progress.ended = time.monotonic()
            if progress.given_ids:
                progress.answer_ids = list(progress.given_ids)
            progress.text = opened.base.tokenizer.decode(progress.answer_ids)
            progress.finish_reason = "given" if progress.given_ids and state.finish_reason != "overflow" else state.finish_reason
            if state.finish_reason == "overflow":
                running.job.message = f"The numbers of {progress.row.variant} were no longer finite, so some answers are missing. Its weights may be damaged."
            elif progress.given_ids:
                self._hand_over(opened, running, state.score, None)
            elif progress.organism is None and not progress.interventions:
                self._hand_over(opened, running, state.logprob, state.logprob)
            elif not progress.row.read_by_base:
                self._hand_over(opened, running, state.logprob, None)
            else:
                running.logprob = state.logprob
                ids = progress.prompt_ids + tuple(progress.answer_ids)
                running.state = opened.batch.add(DecoderRow(ids=ids, score_from=len(progress.prompt_ids)))
                return
        else:
            self._hand_over(opened, running, running.logprob, None if state.finish_reason == "overflow" else state.score)
        opened.rows.remove(running)

    def _hand_over(self, opened: _Open, running: _Running, logprob: float, base_logprob: float | None) -> None:
        running.progress.rollout = _rollout(running, opened.base, logprob, base_logprob)
        running.job.keep(running.progress.rollout)

    def _hand_residuals_over(self, running: _Running) -> None:
        """A fault of whoever takes them ends their job alone."""
        progress = running.progress
        try:
            if progress.on_read is not None:
                progress.on_read(running.state.residuals)
        except Exception as fault:
            if not isinstance(fault, BackendError):
                _log.exception("Activations could not be taken")
            self._fail(running.job, fault)
        progress.ended, progress.finish_reason = time.monotonic(), "given"

    def _rows_of(self, job: Job) -> list[tuple[_Open, _Running]]:
        return [(o, r) for o in self._open for r in o.rows if r.job is job]

    def _stop_unanswered(self, job: Job) -> None:
        """Rows that are being answered leave their batches, those in line never start; whole answers go on to be kept."""
        for opened, running in self._rows_of(job):
            if not running.is_answered:
                opened.batch.remove(running.state)
                opened.rows.remove(running)
        job.stop_rows()

    def _fail(self, job: Job, fault: Exception) -> None:
        what = " ".join(str(fault).split())[:200]
        unexpected = f"The model failed while answering ({type(fault).__name__}: {what}). The log has details; other requests go on."
        for opened, running in self._rows_of(job):
            opened.batch.remove(running.state)
            opened.rows.remove(running)
        job.stop_rows()
        job.end("failed", str(fault) if isinstance(fault, BackendError) else unexpected)


def _has_no_answer_token(progress: RowProgress, state: RowState, number: int) -> bool:
    """Whether a change of answer tokens found none because the answer ended with its first token, which no pass reads."""
    return progress.interventions[number].tokens.where == "answer" and not progress.capture and len(progress.given_ids or state.answer_ids) <= 1


def _unused(progress: RowProgress, number: int) -> InputError:
    """A steered row whose steering did nothing is no answer."""
    change = progress.interventions[number]
    n = len(progress.prompt_ids) + len(progress.answer_ids)
    return InputError(
        f"The steering of {progress.row.variant} after layer {change.layer} changed no token: it is meant for {change.tokens}, and the text has "
        f"{len(progress.prompt_ids)} prompt tokens and {n} in all. Choose other tokens."
    )


def _bytes_of(rows: dict[int, tuple[ResidentBase, list[RowProgress]]]) -> int:
    """Of keys and values, each row as long as the longest of its batch."""
    return sum(len(at_work) * estimate_row(base.record, max(p.n_tokens for p in at_work)) for base, at_work in rows.values() if at_work)


def _rollout(running: _Running, base: ResidentBase, logprob: float, base_logprob: float | None) -> Rollout:
    p = running.progress
    return Rollout(
        key=p.row.key(base.record.key),
        variant=p.row.variant,
        base_model=base.record.key,
        prompt_id=p.row.prompt_id,
        messages=p.row.messages,
        sample=p.row.sample,
        seed=p.row.seed,
        sampling=p.row.sampling,
        prompt_ids=p.prompt_ids,
        answer_ids=tuple(p.answer_ids),
        answer=p.text,
        finish_reason=p.finish_reason or "stopped",
        tokens_per_second=p.tokens_per_second,
        logprob=logprob,
        base_logprob=base_logprob,
        base_fingerprint=base.fingerprint,
        adapter_fingerprint=running.adapter.fingerprint if running.adapter else "",
        steering=p.steering,
        decoder=base.decoder.name,
        dtype=base.decoder.dtype,
    )
