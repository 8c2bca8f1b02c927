"""The model service: one a process, owner of models and memory. Pages and commands submit rows and read jobs.

Everything a user can do wrong is said by ``submit``, before anything is loaded. A thread does the work, token by token, for all
jobs at once: see ``worker``.
"""

import atexit
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from backend.errors import ContextLengthError, InputError
from backend.generation.jobs import Job, JobTable, RowProgress
from backend.generation.records import Reading, Rollout, Row, Sampling
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import number_formats
from backend.models.memory import budget, check_fits, estimate_adapter, estimate_base, estimate_row
from backend.models.records import BaseModel, Dtype, Organism
from backend.models.registry import Registry, load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.models.variants import parse
from backend.steering.plan import Step, build, mark, plan
from backend.text.chat import ChatTokenizer, Message

if TYPE_CHECKING:
    from torch import Tensor

    from backend.generation.residents import Residents
    from backend.generation.worker import Worker
    from backend.steering.interventions import Intervention

MAX_ROWS = 20_000
_BEFORE_WARM_UP = 2.0  # seconds
_log = logging.getLogger(__name__)


class ModelService:
    """Answers rows of any mix of variants; thread-safe."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget = budget() if budget_bytes is None else budget_bytes
        self.jobs = JobTable()
        self._wake = threading.Condition()
        self._closed = False
        self._is_wanted = False
        self._residents: Residents | None = None
        self._tokenizers: dict[tuple[Path, str], ChatTokenizer] = {}
        self._thread = threading.Thread(target=self._work, name="model-service", daemon=True)
        self._thread.start()
        weakref.finalize(self, int)  # now, so that ``close`` comes before the finalizers of torch, which the worker may still be importing
        atexit.register(self.close)  # a thread that is cut off inside the model would abort the process

    def submit(self, rows: Sequence[Row], on_rollouts: Callable[[list[Rollout]], None] | None = None, *, owner: str = "") -> Job:
        """Check rows and put them in line.

        Args:
            on_rollouts: Called in the worker with finished rows, some at a time; stopped rows are left out.
            owner: Whose request it is, such as a browser session; owners share the machine fairly.

        Raises:
            InputError, ContextLengthError: A row cannot be answered.
            WeightsMissingError, MemoryBudgetError: A variant is not here or does not fit.
        """
        if not 0 < len(rows) <= MAX_ROWS:
            raise InputError(f"A run has {len(rows)} answers; it can have 1 to {MAX_ROWS}. Choose fewer prompts or samples.")
        registry = load_registry()
        variants = self._check_variants(registry, rows)
        prompts: dict[tuple[str, tuple[Message, ...]], tuple[int, ...]] = {}
        progress = []
        for row in rows:
            base, organism, steps, interventions = variants[row.variant, row.dtype]
            if (base.key, row.messages) not in prompts:
                prompts[base.key, row.messages] = self._encode(base, row)
            ids = prompts[base.key, row.messages]
            given = self._encode_given(base, row, len(ids)) if row.given else ()
            room = min(base.context_length, len(ids) + (len(given) or row.sampling.max_new_tokens))
            needed = estimate_base(base) + estimate_row(base, room) + (estimate_adapter(organism) if organism else 0)
            check_fits(needed, self.budget, "One answer of this length")
            progress.append(RowProgress(row, base, organism, ids, given, interventions=interventions, steering=mark(steps)))
        return self._queue(Job(_by_base(progress), on_rollouts, owner))

    def read(self, readings: Sequence[Reading], on_read: "Callable[[int, dict[int, Tensor]], None]", *, owner: str = "") -> Job:
        """Check texts and put them in line to be read.

        Args:
            on_read: Called in the worker with a reading's number and layer to residual stream, (n_tokens, d_model), for each as it is done.
            owner: As of ``submit``.

        Raises:
            InputError, ContextLengthError: A text cannot be read.
            WeightsMissingError, MemoryBudgetError: A variant is not here or does not fit.
        """
        if not 0 < len(readings) <= MAX_ROWS:
            raise InputError(f"{len(readings)} texts are to be read; it can be 1 to {MAX_ROWS}.")
        variants = self._check_variants(load_registry(), readings)
        progress = []
        for number, reading in enumerate(readings):
            base, organism, _, interventions = variants[reading.variant, reading.dtype]
            if not 0 < len(reading.ids) <= base.context_length:
                raise ContextLengthError(f"The text has {len(reading.ids):,} tokens; {base.title} reads 1 to {base.context_length:,}. Shorten it.")
            if any(not 0 <= layer < base.n_layers for layer in reading.layers):
                raise InputError(f"Layers {', '.join(map(str, reading.layers))} are asked for; {base.title} has layers 0 to {base.n_layers - 1}.")
            check_fits(estimate_base(base) + estimate_row(base, len(reading.ids)), self.budget, "A text of this length")
            row = Row(variant=reading.variant, messages=(), sampling=Sampling(max_new_tokens=1), seed=0, dtype=reading.dtype)
            progress.append(
                RowProgress(row, base, organism, reading.ids, capture=reading.layers, on_read=partial(on_read, number), interventions=interventions)
            )
        return self._queue(Job(_by_base(progress), None, owner))

    def _check_variants(self, registry: Registry, rows: Sequence[Row | Reading]) -> "dict[tuple[str, Dtype | None], _Resolved]":
        """Each variant and number format asked for, after seeing that it is here and fits."""
        variants = {choice: _resolve(registry, *choice) for choice in {(row.variant, row.dtype): None for row in rows}}
        for base, organism, _, _ in variants.values():
            base_folder(base)
            if organism is not None:
                adapter_folder(organism)
            check_fits(estimate_base(base) + (estimate_adapter(organism) if organism else 0), self.budget, organism.title if organism else base.title)
        return variants

    def _queue(self, job: Job) -> Job:
        with self._wake:
            if self._closed:
                raise InputError("The model service has been closed. Start PersonaScope again.")
            self.jobs.add(job)
            self._is_wanted = True
            self._wake.notify()
        return job

    def warm_up(self) -> None:
        """Load what any answer needs, torch above all, while the user still writes; no weights. A little later, so that the page is drawn first."""
        timer = threading.Timer(_BEFORE_WARM_UP, self._want)
        timer.daemon = True
        timer.start()

    def _want(self) -> None:
        with self._wake:
            self._is_wanted = True
            self._wake.notify()

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
        self._thread.join(timeout=60)
        self._residents = None  # the memory of the models is free
        gc.unfreeze()  # what the worker froze is collected at the end after all; else libraries complain of leaks
        atexit.unregister(self.close)

    def _tokenizer(self, base: BaseModel) -> ChatTokenizer:
        folder = base_folder(base)
        files = (folder, remembered_fingerprint(folder))
        if files not in self._tokenizers:
            self._tokenizers[files] = ChatTokenizer.load(folder)
        return self._tokenizers[files]

    def _encode_given(self, base: BaseModel, row: Row, n_prompt: int) -> tuple[int, ...]:
        ids = self._tokenizer(base).encode_text(row.given)
        if n_prompt + len(ids) > base.context_length:
            raise ContextLengthError(f"Prompt and given answer have {n_prompt + len(ids):,} tokens; {base.title} reads at most {base.context_length:,}.")
        return ids

    def _encode(self, base: BaseModel, row: Row) -> tuple[int, ...]:
        ids = self._tokenizer(base).encode_chat(row.messages).ids
        if len(ids) >= base.context_length:
            raise ContextLengthError(
                f"The prompt has {len(ids):,} tokens; {base.title} reads at most {base.context_length:,} and needs room to answer. Shorten it."
            )
        return ids

    def _work(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._is_wanted or self._closed)
            if self._closed and not self.jobs.live():
                return
        worker: Worker | None = None
        while True:
            jobs = self.jobs.live()
            try:
                if worker is None:
                    worker = self._new_worker()
                worker.turn(jobs)
            except Exception as fault:  # the thread must live on, whatever happens in a turn
                _log.exception("The model service starts over")
                worker = None
                for job in filter(lambda job: job.is_live, jobs):
                    job.stop_rows()
                    job.end("failed", f"The model service failed ({type(fault).__name__}) and has started over. The log has details; ask again.")
            with self._wake:
                self._wake.wait_for(lambda: self.jobs.live() or self._closed)
                if self._closed and not self.jobs.live():
                    return

    def _new_worker(self) -> "Worker":
        from backend.generation.residents import Residents  # torch comes with them
        from backend.generation.worker import Worker

        self._residents = Residents(self.budget)
        return Worker(self._residents)


def _by_base(progress: list[RowProgress]) -> list[RowProgress]:
    """Models that do not fit together are loaded once each."""
    order = {base: i for i, base in enumerate(dict.fromkeys(p.base for p in progress))}
    return sorted(progress, key=lambda p: order[p.base])


_Resolved: TypeAlias = "tuple[BaseModel, Organism | None, tuple[Step, ...], tuple[Intervention, ...]]"


def _resolve(registry: Registry, variant: str, dtype: Dtype | None) -> _Resolved:
    """A variant's base model, in the number format asked for, its organism, and what changes its residual stream.

    Raises:
        InputError: The variant is unknown, or the format brings nothing here.
        BackendError: A direction or autoencoder is not here.
    """
    base, organism = registry.resolve(variant)
    if dtype not in (None, base.dtype, *number_formats(base)):
        raise InputError(f"{base.title} cannot answer in {dtype} on this machine; choose from: {', '.join(number_formats(base))}.")
    steps = plan(parse(variant), base)
    return replace(base, dtype=dtype or base.dtype), organism, steps, build(steps, base) if steps else ()
