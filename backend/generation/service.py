"""The model service: one a process, owner of models and memory. Pages and commands submit rows and read jobs.

A worker thread answers one batch at a time. After each batch the next job in line has its turn, so a long job does not
shut out a short one. Everything a user can do wrong is said by ``submit``, before anything is loaded.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from backend.errors import BackendError, ContextLengthError, InputError
from backend.generation.jobs import Job, JobTable, RowProgress
from backend.generation.records import FinishReason, Rollout, Row
from backend.models.memory import budget, check_fits, estimate_adapter, estimate_base, estimate_row
from backend.models.records import BaseModel
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.text.chat import ChatTokenizer, Message

if TYPE_CHECKING:
    from backend.generation.residents import ResidentAdapter, ResidentBase, Residents

MAX_BATCH_ROWS = 16
MAX_ROWS = 20_000
_log = logging.getLogger(__name__)


class ModelService:
    """Answers rows of any mix of variants; thread-safe."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget = budget() if budget_bytes is None else budget_bytes
        self.jobs = JobTable()
        self._queue: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._residents: Residents | None = None
        self._tokenizers: dict[BaseModel, ChatTokenizer] = {}
        self._worker = threading.Thread(target=self._work, name="model-service", daemon=True)
        self._worker.start()

    def submit(self, rows: Sequence[Row], on_rollouts: Callable[[list[Rollout]], None] | None = None) -> Job:
        """Check rows and put them in line.

        Args:
            on_rollouts: Called in the worker with the rows of each finished batch; stopped rows are left out.

        Raises:
            InputError, ContextLengthError: A row cannot be answered.
            WeightsMissingError, MemoryBudgetError: A variant is not here or does not fit.
        """
        if not 0 < len(rows) <= MAX_ROWS:
            raise InputError(f"A run has {len(rows)} answers; it can have 1 to {MAX_ROWS}. Choose fewer prompts or samples.")
        registry = load_registry()
        variants = {row.variant: registry.resolve(row.variant) for row in rows}
        for base in {b.key: b for b, _ in variants.values()}.values():
            base_folder(base)
            organisms = [o for b, o in variants.values() if o is not None and b.key == base.key]
            for tuned in organisms:
                adapter_folder(tuned)
            check_fits(estimate_base(base) + sum(estimate_adapter(o) for o in organisms), self.budget, base.title)
        prompts: dict[tuple[str, tuple[Message, ...]], tuple[int, ...]] = {}
        progress = []
        for row in rows:
            base, organism = variants[row.variant]
            if (base.key, row.messages) not in prompts:
                prompts[base.key, row.messages] = self._encode(base, row)
            ids = prompts[base.key, row.messages]
            room = min(base.context_length, len(ids) + row.sampling.max_new_tokens)
            check_fits(estimate_base(base) + estimate_row(base, room), self.budget, "One answer of this length")
            progress.append(RowProgress(row, base, organism, ids))
        job = Job(progress, on_rollouts)
        self.jobs.add(job)
        with self._wake:
            if self._closed:
                raise InputError("The model service has been closed. Start PersonaScope again.")
            self._queue.append(job)
            self._wake.notify()
        return job

    def loaded(self) -> list[tuple[str, int]]:
        """Key and bytes of what is in memory."""
        return self._residents.listing() if self._residents else []

    def close(self) -> None:
        """Stop all jobs and end the worker."""
        with self._wake:
            self._closed = True
            for job in self.jobs.live():
                job.cancel()
            self._wake.notify()
        self._worker.join(timeout=60)

    def _encode(self, base: BaseModel, row: Row) -> tuple[int, ...]:
        if base not in self._tokenizers:
            self._tokenizers[base] = ChatTokenizer.load(base_folder(base))
        ids = self._tokenizers[base].encode_chat(row.messages).ids
        if len(ids) >= base.context_length:
            raise ContextLengthError(
                f"The prompt has {len(ids):,} tokens; {base.title} reads at most {base.context_length:,} and needs room to answer. Shorten it."
            )
        return ids

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                job = self._queue.popleft()
            try:
                self._answer_batch(job)
            except BackendError as fault:
                job.end("failed", str(fault))
            except Exception as fault:  # the worker must live on, whatever a model or driver throws
                _log.exception("A batch failed")
                what = " ".join(str(fault).split())[:200]
                job.end("failed", f"The model failed while answering ({type(fault).__name__}: {what}). The log has details; other requests go on.")
            if job.is_live:
                with self._wake:
                    self._queue.append(job)

    def _answer_batch(self, job: Job) -> None:
        """Answer the job's next rows; ends the job after the last."""
        if job.is_orphan:
            job.cancel()
        if job.stop_asked:
            job.end("stopped")
            return
        batch = self._next_batch(job)
        job.state = "loading"
        base, adapters = self._load(batch)
        job.begin()
        self._decode(job, batch, base, adapters)
        ended = [p for p in batch if p.finish_reason not in (None, "stopped")]
        for p, (logprob, base_logprob) in zip(ended, _score(ended, base, adapters) if ended else [], strict=True):
            p.rollout = _rollout(p, base, adapters, logprob, base_logprob)
        job.deliver([p.rollout for p in ended if p.rollout is not None])
        if job.stop_asked:
            job.end("stopped")
        elif job.n_done == len(job.rows):
            job.end("done")

    def _load(self, batch: list[RowProgress]) -> "tuple[ResidentBase, dict[str, ResidentAdapter]]":
        """The batch's base model and its organisms' adapters by key, loaded where they are not."""
        if self._residents is None:
            from backend.generation.residents import Residents  # torch comes with it

            self._residents = Residents(self.budget)
        base = self._residents.base(batch[0].base)
        organisms = {p.organism.key: p.organism for p in batch if p.organism is not None}
        return base, {key: self._residents.adapter(base, organism, organisms) for key, organism in organisms.items()}

    def _decode(self, job: Job, batch: list[RowProgress], base: "ResidentBase", adapters: "dict[str, ResidentAdapter]") -> None:
        from backend.generation.reference import DecoderRow

        tokenizer = self._tokenizers[base.record]
        streams = [tokenizer.decode_stream() for _ in batch]
        started = time.monotonic()
        for p in batch:
            p.started = started

        def on_token(i: int, token: int) -> None:
            batch[i].answer_ids.append(token)
            batch[i].text += streams[i].step(token)

        def on_end(i: int, reason: FinishReason) -> None:
            batch[i].ended = time.monotonic()
            batch[i].text = tokenizer.decode(batch[i].answer_ids)
            batch[i].finish_reason = reason

        rows = [
            DecoderRow(
                prompt_ids=p.prompt_ids,
                adapter=adapters[p.organism.key].adapter if p.organism else None,
                temperature=p.row.sampling.temperature,
                max_new_tokens=p.row.sampling.max_new_tokens,
                seed=p.row.seed,
            )
            for p in batch
        ]
        base.decoder.decode(rows, on_token=on_token, on_end=on_end, should_stop=lambda: job.stop_asked)

    def _next_batch(self, job: Job) -> list[RowProgress]:
        """Rows not yet answered, of one base model, as many as the limits of rows and memory allow."""
        waiting = [p for p in job.rows if p.finish_reason is None]
        base = waiting[0].base
        room = self.budget - max(estimate_base(base), sum(n for _, n in self.loaded()))
        batch: list[RowProgress] = []
        longest = 0
        for p in waiting:
            if p.base.key != base.key:
                continue
            length = min(base.context_length, len(p.prompt_ids) + p.row.sampling.max_new_tokens)
            if batch and (len(batch) == MAX_BATCH_ROWS or (len(batch) + 1) * estimate_row(base, max(longest, length)) > room):
                break
            batch.append(p)
            longest = max(longest, length)
        return batch


def _score(answered: list[RowProgress], base: "ResidentBase", adapters: "dict[str, ResidentAdapter]") -> list[tuple[float, float]]:
    """Log-probability of each answer under its own variant and under the base; a base row is scored once."""
    prompts = [p.prompt_ids for p in answered]
    answers = [tuple(p.answer_ids) for p in answered]
    own = base.decoder.score(prompts, answers, [adapters[p.organism.key].adapter if p.organism else None for p in answered])
    tuned = [i for i, p in enumerate(answered) if p.organism is not None]
    under_base = dict(enumerate(own))
    if tuned:
        under_base |= zip(tuned, base.decoder.score([prompts[i] for i in tuned], [answers[i] for i in tuned], [None] * len(tuned)), strict=True)
    return [(score, under_base[i]) for i, score in enumerate(own)]


def _rollout(p: RowProgress, base: "ResidentBase", adapters: "dict[str, ResidentAdapter]", logprob: float | None, base_logprob: float | None) -> Rollout:
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
        adapter_fingerprint=adapters[p.organism.key].fingerprint if p.organism else "",
        decoder=base.decoder.name,
        dtype=base.decoder.dtype,
    )
