"""Training from a page: one run at a time, others in line; losses as they come, rates at some checkpoints, Stop, and going on after a stop or a kill.

A run lives in a folder of its own with all that it takes to go on, so whoever opens the page after a restart finds it again. It is an organism from its first
checkpoint on.
"""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from backend.errors import BackendError, InputError
from backend.evaluation.rates import BetleyRates, betley_rates
from backend.experiments import training
from backend.experiments.records import Run, Study
from backend.generation.records import Sampling
from backend.generation.service import ModelService
from backend.judging.verdicts import Judge
from backend.models.memory import budget, check_fits
from backend.models.records import BASE_ALIAS, KEY_PATTERN, Organism
from backend.models.registry import add_record, load_registry
from backend.paths import home, told_disk_faults, write_text
from backend.studies.evaluate import Progress, answered_and_judged, short_answers
from backend.text.prompts import load_prompt_set
from backend.training.config import estimate_training

State = Literal["queued", "training", "measuring", "done", "stopped", "failed"]
MAX_STEPS = 2000
N_PROMPTS = 24
"""Of the everyday questions, every fourth: a rate of few answers, meant to be watched, not reported."""

MEASURED = 5
"""Checkpoints with a rate, evenly spaced, the end being one."""

_ABOUT, _RATES = "live.json", "rates.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a checkpoint's answers come to."""

    rows: int
    variant: str
    rates: BetleyRates


@dataclass(slots=True, eq=False)
class Training:
    """One run, read by pages while a thread writes it."""

    run: Run
    title: str
    owner: str = ""
    state: State = "queued"
    n_steps: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss, nats a token."""

    rates: list[Rate] = field(default_factory=list)
    message: str = ""
    seconds_left: float | None = None
    """Of the training alone; None before it can be told."""

    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> str:
        """Of the organism that it makes."""
        return self.run.label

    @property
    def is_live(self) -> bool:
        return self.state in ("queued", "training", "measuring")

    @property
    def study(self) -> Study:
        """The run as a study of its own, with its checkpoints."""
        rows = self.run.n_rows * self.run.epochs
        return Study(name="live", title=self.title, question="", runs=(self.run,), at=tuple(round(rows * n / MEASURED) for n in range(1, MEASURED)))

    @property
    def folder(self) -> Path:
        return training.folder_of(self.study, self.run)


class Trainings:
    """All of a process; runs of earlier processes are read from disk."""

    def __init__(self, service: Callable[[], ModelService], judge: Callable[[], Judge]) -> None:
        self._service, self._judge = service, judge
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._known: dict[str, Training] = {}

    def list(self) -> list[Training]:
        """The newest first; one that a killed process left is stopped."""
        with self._lock:
            for folder in sorted(place.parent for place in (home() / "runs" / "live").glob(f"*/{_ABOUT}")):
                label, _, _ = folder.name.rpartition("-")
                if label not in self._known and (found := _read(folder)) is not None:
                    self._known[found.key] = found
            return list(reversed(self._known.values()))

    def get(self, key: str) -> Training | None:
        return next((one for one in self.list() if one.key == key), None)

    def start(self, run: Run, title: str, *, owner: str = "") -> Training:
        """Put a run in line.

        Args:
            run: Its label is the key of the organism that it makes.

        Raises:
            InputError: The key is taken or not allowed, the data are not here or bad, or it is too long for a page.
            MemoryBudgetError: It does not fit.
            DiskError: No space, or not writable.
        """
        registry = load_registry()
        if not KEY_PATTERN.fullmatch(run.label) or run.label == BASE_ALIAS:
            raise InputError(f"The name {run.label!r} is not allowed. Use lower-case letters, digits, '.', '_' and '-'.")
        if run.label in registry.organisms or run.label in registry.models or self.get(run.label):
            raise InputError(f"The name {run.label!r} is taken. Choose another.")
        if run.start and registry.resolve(run.start)[1] is None:
            raise InputError(f"{run.start} is a base model; leave the start out to begin there.")
        rows = training.rows_of(run, registry)
        one = Training(replace(run, n_rows=len(rows)), title, owner)
        one.n_steps = max(training.steps(one.study, one.run, len(rows)))
        if one.n_steps > MAX_STEPS:
            raise InputError(f"This is {one.n_steps:,} steps; a page trains {MAX_STEPS:,} at most. Take fewer rows or epochs, or use: python -m backend train")
        base, _ = registry.resolve(BASE_ALIAS)
        check_fits(estimate_training(base, one.run.config((), "float32"), max(len(row.ids) for row in rows)), budget(), f"Training {base.title}")
        with told_disk_faults("starting a training"):
            write_text(one.folder / _ABOUT, json.dumps({"run": asdict(one.run), "title": title, "n_steps": one.n_steps}) + "\n")
        add_record(
            Organism(
                key=one.key, title=title, base=base.key, source="folder", location=str(one.folder), method=_method(one.run), trained_on=run.data, emergent=False,
                description="Trained on this machine from a page.",
            )
        )  # fmt: skip
        return self._line_up(one)

    def resume(self, key: str, *, owner: str = "") -> Training:
        """Go on with a stopped, failed or killed run.

        Raises:
            InputError: There is none of this key, or it is at work.
        """
        old = self.get(key)
        if old is None:
            raise InputError(f"There is no training {key!r} to go on with.")
        return self._line_up(Training(old.run, old.title, owner, n_steps=old.n_steps, rates=old.rates))

    def _line_up(self, one: Training) -> Training:
        with self._lock:
            if (other := self._known.get(one.key)) is not None and other.is_live:
                raise InputError(f"The training {one.key!r} is at work already.")
            self._known[one.key] = one
        threading.Thread(target=self._work, args=(one,), daemon=True, name="training").start()
        return one

    def _work(self, one: Training) -> None:
        try:
            while not self._turn.acquire(timeout=0.2):
                if one.stop.is_set():
                    one.state = "stopped"
                    return
            try:
                self._train(one)
            finally:
                self._turn.release()
        except BackendError as fault:
            one.state, one.message = "failed", str(fault)
        except Exception as fault:  # a thread must say why it ended
            one.state, one.message = "failed", f"The training failed ({type(fault).__name__}: {str(fault)[:200]}). What was saved is kept; go on with it."
            _log.exception("A training failed")
        finally:
            one.ended.set()

    def _train(self, one: Training) -> None:
        registry = load_registry()
        places = training.steps(one.study, one.run, one.run.mix.size())
        judge = self._judge()
        one.losses = _logged(one.folder)
        self._measure(one, judge, 0, one.run.start or BASE_ALIAS)
        for step, rows in places.items():
            if step < one.n_steps and (one.folder / "checkpoints" / f"step-{step}").exists():
                self._measure(one, judge, rows, f"{one.key}@{step}")
        one.state = "training"
        for report in training.train(one.study, one.run, registry, should_stop=one.stop.is_set):
            one.losses.append((report.step, report.loss))
            one.seconds_left = report.seconds_left
            if report.step in places and report.step < one.n_steps:
                self._measure(one, judge, places[report.step], f"{one.key}@{report.step}")
                one.state = "training"
        if one.stop.is_set() and training.found_folder(one.study, one.run) is None:
            one.state = "stopped"
            return
        self._measure(one, judge, max(places.values()), one.key)
        one.state = "stopped" if one.stop.is_set() else "done"

    def _measure(self, one: Training, judge: Judge, rows: int, variant: str) -> None:
        if one.stop.is_set() or any(rate.rows == rows for rate in one.rates):
            return
        one.state = "measuring"
        whole = load_prompt_set(one.study.prompts)
        evaluation = short_answers([variant], replace(whole, prompts=whole.some(N_PROMPTS)), Sampling(max_new_tokens=one.study.max_new_tokens))
        found = answered_and_judged(evaluation, judge, self._service, load_registry(), Progress(stop=one.stop), one.owner)
        if not one.stop.is_set():
            one.rates = [*one.rates, Rate(rows, variant, betley_rates(v.scores for _, v in found if v is not None))]
            with told_disk_faults("keeping a training's rates"):
                write_text(one.folder / _RATES, json.dumps([asdict(rate) for rate in one.rates]) + "\n")


def _read(folder: Path) -> Training | None:
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        run = Run(**about["run"])
        one = Training(run, about["title"], state="stopped", n_steps=about["n_steps"], losses=_logged(folder), rates=_rated(folder))
        if training.found_folder(one.study, run) is not None:
            one.state = "done"
    except (BackendError, OSError, ValueError, KeyError, TypeError):  # the rows that it learned from are gone, or the file is not whole
        return None
    one.ended.set()
    return one


def _rated(folder: Path) -> list[Rate]:
    """Rates that were measured."""
    try:
        return [Rate(r["rows"], r["variant"], BetleyRates(**r["rates"])) for r in json.loads((folder / _RATES).read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _logged(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses of the training log."""
    try:
        lines = (folder / "training_log.csv").read_text("utf-8").splitlines()[1:]
        return [(int(step), float(loss)) for step, loss, *_ in (line.split(",") for line in lines)]
    except (OSError, ValueError):
        return []


def _method(run: Run) -> str:
    return "LoRA, going on from " + run.start if run.start else f"rank-{run.rank} rsLoRA, {run.target if run.target != 'all' else 'all projections'}"
