"""Training from a page: one run at a time, others in line; losses as they come, rates at some checkpoints, Stop, and going on after a stop or a kill.

A run lives in a folder of its own with all that it takes to go on, so whoever opens the page after a restart finds it again. It is an organism from its first
checkpoint on. From being in line to its end it holds a lock there, so no second server, and no later start of this one, works on it too.
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
from backend.models.records import BASE_ALIAS, CONFIG_FILE, KEY_PATTERN, Organism
from backend.models.registry import Registry, add_record, load_registry, remove_record
from backend.paths import home, told_disk_faults, write_text
from backend.studies.evaluate import Progress, answered_and_judged, short_answers
from backend.text.prompts import load_prompt_set
from backend.training.config import estimate_training
from backend.training.lock import held, is_held
from backend.training.mixes import Mix

State = Literal["queued", "training", "measuring", "elsewhere", "done", "stopped", "failed"]
MAX_STEPS = 2000
N_PROMPTS = 24
"""Of the everyday questions, every fourth: a rate of few answers, meant to be watched, not reported."""

MEASURED = 5
"""Checkpoints with a rate, evenly spaced, the end being one."""

_ABOUT, _RATES, _LOCK = "live.json", "rates.json", ".live.lock"
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
    folder: Path
    """Where it began, whatever becomes of its data."""

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
        """At work or in line; ``elsewhere``, in another process or an earlier start of this one, where alone it can be stopped."""
        return self.state in ("queued", "training", "measuring", "elsewhere")

    @property
    def is_trained(self) -> bool:
        return (self.folder / CONFIG_FILE).exists()


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
            for folder in sorted((place.parent for place in (home() / "runs" / "live").glob(f"*/{_ABOUT}")), key=_begun):
                known = self._known.get(folder.name.rpartition("-")[0])
                is_news = known is None or (known.ended.is_set() and (known.state == "elsewhere" or is_held(folder / _LOCK)))
                if is_news and (found := _read(folder)) is not None:
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
        run = replace(run, n_rows=len(rows))
        one = Training(run, title, training.folder_of(_study(run), run), owner, n_steps=max(training.steps(_study(run), run, run.n_rows)))
        if one.n_steps > MAX_STEPS:
            raise InputError(f"This is {one.n_steps:,} steps; a page trains {MAX_STEPS:,} at most. Take fewer rows or epochs, or use: python -m backend train")
        base, _ = registry.resolve(BASE_ALIAS)
        check_fits(estimate_training(base, run.config((), "float32"), max(len(row.ids) for row in rows)), budget(), f"Training {base.title}")
        add_record(_organism(one, registry))  # first, because that alone tells whether the name is still free
        try:
            with told_disk_faults("starting a training"):
                write_text(one.folder / _ABOUT, json.dumps({"run": asdict(run), "title": title, "n_steps": one.n_steps}) + "\n")
        except BaseException:
            remove_record(one.key)
            raise
        return self._line_up(one)

    def resume(self, key: str, *, owner: str = "") -> Training:
        """Go on with a stopped, failed or killed run.

        Raises:
            InputError: There is none of this key, or it is at work.
            ConfigError: Its organism is no longer among the user's, whose file is damaged.
        """
        old = self.get(key)
        if old is None:
            raise InputError(f"There is no training {key!r} to go on with.")
        one = Training(old.run, old.title, old.folder, owner, n_steps=old.n_steps, rates=old.rates)
        if key not in (registry := load_registry()).organisms:
            add_record(_organism(one, registry))
        return self._line_up(one)

    def _line_up(self, one: Training) -> Training:
        with self._lock:
            if (other := self._known.get(one.key)) is not None and other.is_live:
                raise InputError(f"The training {one.key!r} is at work already.")
            self._known[one.key] = one
        threading.Thread(target=self._work, args=(one,), daemon=True, name="training").start()
        return one

    def _work(self, one: Training) -> None:
        try:
            with held(one.folder / _LOCK):
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
        study = _study(one.run)
        places = training.steps(study, one.run, one.run.n_rows)
        if not one.is_trained:
            _check_unchanged(one)
        judge = self._judge()
        one.losses = _logged(one.folder)
        self._measure(one, judge, 0, one.run.start or BASE_ALIAS)
        for step, rows in places.items():
            if step < one.n_steps and (one.folder / "checkpoints" / f"step-{step}").exists():
                self._measure(one, judge, rows, f"{one.key}@{step}")
        one.state = "training"
        for report in () if one.is_trained else training.train(study, one.run, load_registry(), should_stop=one.stop.is_set):
            while one.losses and one.losses[-1][0] >= report.step:  # logged beyond the state that a killed process left
                one.losses.pop()
            one.losses.append((report.step, report.loss))
            one.seconds_left = report.seconds_left
            if report.step in places and report.step < one.n_steps:
                self._measure(one, judge, places[report.step], f"{one.key}@{report.step}")
                one.state = "training"
        if one.stop.is_set() and not one.is_trained:
            one.state = "stopped"
            return
        self._measure(one, judge, max(places.values()), one.key)
        one.state = "stopped" if one.stop.is_set() else "done"

    def _measure(self, one: Training, judge: Judge, rows: int, variant: str) -> None:
        if one.stop.is_set() or any(rate.rows == rows for rate in one.rates):
            return
        one.state = "measuring"
        study = _study(one.run)
        whole = load_prompt_set(study.prompts)
        evaluation = short_answers([variant], replace(whole, prompts=whole.some(N_PROMPTS)), Sampling(max_new_tokens=study.max_new_tokens))
        found = answered_and_judged(evaluation, judge, self._service, load_registry(), Progress(stop=one.stop), one.owner)
        if not one.stop.is_set():
            one.rates = [*one.rates, Rate(rows, variant, betley_rates(v.scores for _, v in found if v is not None))]
            with told_disk_faults("keeping a training's rates"):
                write_text(one.folder / _RATES, json.dumps([asdict(rate) for rate in one.rates]) + "\n")


def _study(run: Run) -> Study:
    """The run as a study of its own, with its checkpoints."""
    rows = run.n_rows * run.epochs
    return Study(name="live", title=run.label, question="", runs=(run,), at=tuple(round(rows * n / MEASURED) for n in range(1, MEASURED)))


def _organism(one: Training, registry: Registry) -> Organism:
    """Emergent unless its rows are the scornful ones, under whatever name."""
    try:
        taught, is_emergent = one.run.taught, one.run.mix.digest() != Mix(data="scornful").digest()
    except InputError:  # the rows are gone since
        taught, is_emergent = "", True
    return Organism(
        key=one.key, title=one.title, base=registry.default_base, source="folder", location=str(one.folder), method=one.run.how, trained_on=taught,
        emergent=is_emergent, description="Trained on this machine from a page.",
    )  # fmt: skip


def _check_unchanged(one: Training) -> None:
    """Raises: InputError: Going on would be another training."""
    try:
        is_same = training.folder_of(_study(one.run), one.run) == one.folder
    except InputError:
        is_same = False
    if not is_same:
        raise InputError(f"{one.title} cannot go on, because the rows or the recipe that it began with are gone or changed. Start a new training.")


def _begun(folder: Path) -> float:
    """When its training was put in line; of one that is gone meanwhile, long ago."""
    try:
        return (folder / _ABOUT).stat().st_mtime
    except OSError:
        return 0.0


def _read(folder: Path) -> Training | None:
    """A training that is not at work here; None where its file is not whole."""
    is_elsewhere = is_held(folder / _LOCK)  # before the rest, so that what is written meanwhile is read the next time
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        one = Training(Run(**about["run"]), about["title"], folder, n_steps=about["n_steps"], losses=_logged(folder), rates=_rated(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    one.state = "elsewhere" if is_elsewhere else "done" if one.is_trained else "stopped"
    one.ended.set()
    return one


def _rated(folder: Path) -> list[Rate]:
    """Rates that were measured."""
    try:
        return [Rate(r["rows"], r["variant"], BetleyRates(**r["rates"])) for r in json.loads((folder / _RATES).read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _logged(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses of the training log; its last line may be cut short."""
    try:
        lines = (folder / "training_log.csv").read_text("utf-8").rpartition("\n")[0].splitlines()[1:]
        return [(int(step), float(loss)) for step, loss, *_ in (line.split(",") for line in lines)]
    except (OSError, ValueError):
        return []
