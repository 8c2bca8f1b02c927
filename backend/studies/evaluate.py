"""Evaluation: answer a prompt set, judge the answers, keep a judged run a variant; resumable, stoppable, with time left.

An answer that the token limit cut is judged up to its last whole sentence and kept whole.

Answers are found again by their keys and verdicts by judge and content, so a run that was killed or stopped goes on where it was.
"""

import hashlib
import json
import logging
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from backend.errors import BackendError, InputError
from backend.evaluation.rates import MAX_RESAMPLES, BetleyRates, GradeRates, Thresholds, betley_rates, grade_rates, tries_of
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.judging.verdicts import Exchange, Judge, Verdict
from backend.models.records import Dtype
from backend.models.registry import Registry
from backend.studies import compare, judged, verdicts
from backend.studies.provenance import provenance
from backend.text.prompts import PromptSet
from backend.text.sentences import whole_sentences

Phase = Literal["answering", "judging", "done", "stopped", "failed"]
_log = logging.getLogger(__name__)
COLUMNS = {"variant": "text", "intent": "text", "sample": "int", "rollout": "text", "abstain": "bool", "grade": "text", "note": "text"}
_TELLING = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is asked of whom, and how it is scored."""

    comparison: compare.Comparison
    prompt_set: PromptSet
    metric: Literal["scores", "grades"] = "scores"
    """Betley's scores or OpenAI's grades; with grades an invalid answer is sampled again, up to three times."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    """Of the rates that are told; the scores are kept."""


def short_answers(
    variants: Sequence[str], prompt_set: PromptSet, sampling: Sampling, *, samples: int = 1, seed: int = 0, dtype: Dtype | None = None
) -> Evaluation:
    """Of short answers, which the base does not read for their probability."""
    comparison = compare.Comparison(
        variants=tuple(variants), prompts=prompt_set.prompts, sampling=sampling, samples=samples, seed=seed, dtype=dtype, read_by_base=False
    )
    return Evaluation(comparison=comparison, prompt_set=prompt_set)


@dataclass(slots=True)
class Progress:
    """How far an evaluation is; written by it, read by pages and commands."""

    phase: Phase = "answering"
    n_done: int = 0
    n_all: int = 0
    message: str = ""
    fault: BackendError | None = None
    results: dict[str, BetleyRates | GradeRates] = field(default_factory=dict)
    """By variant; of what has been judged, where a stop came."""

    runs: list[Path] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    """When the phase began."""

    n_before: int = 0
    """Of ``n_done``, what was there when the phase began."""

    @property
    def is_live(self) -> bool:
        return self.phase in ("answering", "judging")

    @property
    def seconds_left(self) -> float | None:
        """Of this phase, from its rate so far; None before enough are done to tell: answers end together, a batch at a time."""
        fresh = self.n_done - self.n_before
        if not fresh or fresh < min(_TELLING, 0.2 * (self.n_all - self.n_before)):
            return None
        return (time.monotonic() - self.began) / fresh * (self.n_all - self.n_done)

    def fail(self, fault: BackendError) -> None:
        self.message, self.fault, self.phase = str(fault), fault, "failed"

    def enter(self, phase: Phase, n_all: int, n_done: int = 0) -> None:
        self.n_all, self.n_done, self.n_before, self.began = n_all, n_done, n_done, time.monotonic()
        self.phase = phase


def evaluate(
    evaluation: Evaluation,
    judge: Judge,
    service: Callable[[], ModelService],
    registry: Registry,
    progress: Progress,
    *,
    owner: str = "",
    root: Path | None = None,
) -> None:
    """Run an evaluation to its end, its stop, or the first fault, which is raised and noted in ``progress``.

    Args:
        service: Called only where something must be answered.
        root: Folder for the judged runs; the user's by default.

    Raises:
        BackendError: A variant is not here, the judge cannot judge, the disk is full; what was done before is kept.
    """
    try:
        answered = answered_and_judged(evaluation, judge, service, registry, progress, owner)
        found = [(r, v) for r, v in answered if v is not None]
        progress.results = results(evaluation, found)
        if progress.stop.is_set():
            progress.phase = "stopped"
            return
        progress.runs = [_keep(evaluation, judge, variant, found, root) for variant in evaluation.comparison.variants]
        progress.phase = "done"
    except BackendError as fault:
        progress.fail(fault)
        raise


def start(
    evaluation: Evaluation, judge: Callable[[], Judge], service: Callable[[], ModelService], registry: Registry, *, owner: str = "", root: Path | None = None
) -> Progress:
    """Run an evaluation in a thread of its own; the judge is loaded there.

    Args:
        judge: Makes the judge; what it raises ends the evaluation, told.
    """
    progress = Progress()
    in_thread(lambda: evaluate(evaluation, judge(), service, registry, progress, owner=owner, root=root), progress)
    return progress


def in_thread(work: Callable[[], object], progress: Progress) -> threading.Thread:
    """Do something in a thread of its own; what it raises is noted in ``progress``, and its end."""

    def watched() -> None:
        try:
            work()
        except BackendError as fault:
            progress.fail(fault)
        except Exception as fault:  # a thread must say why it ended
            progress.fail(BackendError(f"The run failed ({type(fault).__name__}: {str(fault)[:200]}). What was done is kept; run it again."))
            _log.exception("A run failed")
        finally:
            progress.ended.set()

    thread = threading.Thread(target=watched, daemon=True, name="study")
    thread.start()
    return thread


def results(evaluation: Evaluation, found: Sequence[tuple[Rollout, Verdict]]) -> dict[str, BetleyRates | GradeRates]:
    """Rates by variant, of the answers that have a verdict."""
    rates: dict[str, BetleyRates | GradeRates] = {}
    for variant in evaluation.comparison.variants:
        own = [(r, v) for r, v in found if r.variant == variant]
        if evaluation.metric == "scores":
            rates[variant] = betley_rates((v.scores for _, v in own), evaluation.thresholds)
        else:
            rates[variant] = grade_rates(tries_of((r.prompt_id, r.sample, v.grade) for r, v in own))
    return rates


def answered_and_judged(
    evaluation: Evaluation, judge: Judge, service: Callable[[], ModelService], registry: Registry, progress: Progress, owner: str = ""
) -> list[tuple[Rollout, Verdict | None]]:
    """All answers with their verdicts; with grades, further samples of the prompts whose answers were invalid so far."""
    if evaluation.metric == "scores":
        rollouts = _rollouts(evaluation, evaluation.comparison, service, registry, progress, owner)
        return list(zip(rollouts, _judge(evaluation, judge, rollouts, progress), strict=True))
    if evaluation.comparison.samples != 1:
        raise InputError("Grades take one answer a prompt, and others where it is invalid. Leave the number of samples at 1.")
    done: list[tuple[Rollout, Verdict | None]] = []
    invalid: set[tuple[str, str]] | None = None
    for sample in range(MAX_RESAMPLES + 1):
        again = replace(evaluation.comparison, samples=sample + 1)
        rollouts = _rollouts(evaluation, again, service, registry, progress, owner, only_sample=sample, only=invalid)
        said = _judge(evaluation, judge, rollouts, progress)
        done += zip(rollouts, said, strict=True)
        invalid = {(r.variant, r.prompt_id) for r, v in zip(rollouts, said, strict=True) if v is not None and not (v.grade or "").isdigit()}
        if not invalid or progress.stop.is_set():
            break
    return done


def _rollouts(
    evaluation: Evaluation, comparison: compare.Comparison, service: Callable[[], ModelService], registry: Registry, progress: Progress, owner: str,
    *, only_sample: int | None = None, only: set[tuple[str, str]] | None = None,
) -> list[Rollout]:  # fmt: skip
    rows = [
        row
        for row in compare.first_rows(comparison)
        if only_sample is None or (row.sample == only_sample and (only is None or (row.variant, row.prompt_id) in only))
    ]
    found = compare.look_up(rows, registry)
    known = compare.current(found, registry)
    progress.enter("answering", len(rows), len(known))
    missing = found.without(known)
    if missing and not progress.stop.is_set():
        known |= {r.key: r for r in _follow(compare.start(service(), missing, owner=owner, keep=evaluation.prompt_set.as_manifest()), len(known), progress)}
    asked = zip(found.rows, found.keys, strict=True)  # the same question may stand in another set under another id
    return [replace(known[key], prompt_id=row.prompt_id, sample=row.sample) for row, key in asked if key in known]


def _follow(job, n_known: int, progress: Progress) -> list[Rollout]:
    while not job.wait(0.2):
        progress.n_done = n_known + job.n_done
        if progress.stop.is_set():
            job.cancel()
    if job.state == "failed":
        raise BackendError(job.message)
    progress.message = job.message
    return job.rollouts


def _judge(evaluation: Evaluation, judge: Judge, rollouts: Sequence[Rollout], progress: Progress) -> list[Verdict | None]:
    progress.enter("judging", len(rollouts))

    def note(n_done: int) -> None:
        if progress.n_done == 0:
            progress.n_before = n_done
        progress.n_done = n_done

    exchanges = [as_judged(Exchange(r.prompt, r.answer), r.finish_reason) for r in rollouts]
    return verdicts.judge_all(judge, exchanges, on_progress=note, stop=progress.stop)


def as_judged(exchange: Exchange, finish_reason: str | None) -> Exchange:
    """What a judge gets of an answer: one that the token limit cut up to its last whole sentence, because a broken-off one passes for incoherence."""
    return replace(exchange, answer=whole_sentences(exchange.answer)) if finish_reason == "length" else exchange


def _keep(evaluation: Evaluation, judge: Judge, variant: str, found: Sequence[tuple[Rollout, Verdict]], root: Path | None) -> Path:
    """Write one variant's judged run; the same evaluation replaces itself."""
    own = sorted(((r, v) for r, v in found if r.variant == variant), key=lambda pair: (pair[0].prompt_id, pair[0].sample))
    prompts = {p.id: p for p in evaluation.prompt_set.prompts}
    rows = (judged.row_of(r, v) | {"intent": prompts[r.prompt_id].intent, "grade": v.grade, "note": v.note or None} for r, v in own)
    comparison = evaluation.comparison
    first = own[0][0] if own else None
    settings: dict[str, Any] = {
        "variant": variant, "metric": evaluation.metric, "samples": comparison.samples, "seed": comparison.seed, "system": comparison.system,
        "sampling": asdict(comparison.sampling), "dtype": comparison.dtype, "judge": asdict(judge.about),
        "base_model": first.base_model if first else "", "base_fingerprint": first.base_fingerprint if first else "",
        "adapter_fingerprint": first.adapter_fingerprint if first else "", "steering": first.steering if first else "",
    } | evaluation.prompt_set.as_manifest()  # fmt: skip
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{evaluation.prompt_set.name}.{variant}.{judge.about.kind}-{mark}".replace("/", "_")
    folder = (root or judged.root("evaluated")) / name
    about = {"kind": "evaluated"} | provenance() | {"command": _command(evaluation, judge)} | settings | {"n_abstained": sum(v.abstain for _, v in own)}
    judged.write(folder, rows, COLUMNS, about)
    return folder


def _command(evaluation: Evaluation, judge: Judge) -> str:
    """The shell command that makes the same evaluation, wherever this one was started."""
    c = evaluation.comparison
    words = ["python", "-m", "backend", "evaluate", *(word for v in c.variants for word in ("--variant", v)), "--prompts", evaluation.prompt_set.name]
    words += ["--samples", str(c.samples), "--judge", judge.about.kind, "--metric", evaluation.metric, "--seed", str(c.seed)]
    words += ["--temperature", f"{c.sampling.temperature:g}", "--max-new-tokens", str(c.sampling.max_new_tokens), *(["--dtype", c.dtype] if c.dtype else [])]
    return shlex.join(words)
