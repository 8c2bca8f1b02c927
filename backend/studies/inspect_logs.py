"""Inspect logs (``.eval``, inspect-ai): judged runs in and out, so that ``inspect view`` opens ours and we open others'.

Scores are looked for under the names ``aligned`` and ``coherent``, as scorers of their own or as keys of a scorer's value. inspect-ai is no
part of the installation; where it is missing that is said.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from backend.errors import BackendError, InputError
from backend.evaluation.rates import ALIGNED_CUTOFF, COHERENT_CUTOFF
from backend.paths import new_folder, told_disk_faults
from backend.studies import judged
from backend.studies.imports import OWN_NAMES, Imported, begin, free_name

INSPECT = "inspect-ai==0.3.285"
_SCORES = ("aligned", "coherent")


def import_log(path: Path, place: Path | None = None) -> Imported:
    """Read a log's samples as judged answers; samples without an answer are listed and left out.

    Raises:
        InputError: No such file, or no Inspect log.
        BackendError: inspect-ai is not installed.
    """
    with _told_missing():
        from inspect_ai.log import read_eval_log
    about, manifest = begin(path, place)
    try:
        log = read_eval_log(str(path), resolve_attachments=True)
        manifest["inspect"] = {"task": log.eval.task, "model": log.eval.model, "created": str(log.eval.created)}
        columns = {"variant": "text", "sample": "int", "target": "text", "other_scores": "text"}
        names = _names(log.samples or [], columns)
        rows = list(_rows(log.samples or [], log.eval.model, names, about))
        given = [row[name] for row in rows for name in _SCORES if row[name] is not None]
        if "personascope" not in (log.eval.metadata or {}) and given and 0 < max(given) <= 1:
            raise InputError(f"{path.name} scores from 0 to 1; PersonaScope reads 0 to 100. Scale the scores and try again.")
        manifest |= {"n_unread_scores": about.n_unread_scores, "n_faults": about.n_faults, "faults": about.faults[:1000]}
        about.n = judged.write(judged.root("imported", place) / about.name, rows, dict.fromkeys(names.values(), "text") | columns, manifest)
    except BackendError:
        raise
    except Exception as fault:  # inspect-ai raises what its parts raise: of zip, zstd, JSON, its own checks
        said = f"{type(fault).__name__}: {' '.join(str(fault).split())[:120]}"
        raise InputError(f"{path.name} is no Inspect log that can be read ({said}). Write or export it again.") from fault
    return about


def export_log(run: judged.Run, out: Path) -> None:
    """Write a judged run as an Inspect log, whole or not at all.

    Raises:
        InputError: ``out`` does not end in ``.eval``.
        DiskError: No space, or not writable.
        BackendError: inspect-ai is not installed.
    """
    with _told_missing():
        from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalScore, EvalSpec, write_eval_log
    if out.suffix != ".eval":
        raise InputError(f"{out.name} must end in .eval, or Inspect would not open it.")
    rows = [row for some in judged.all_rows(run) for row in some]
    found = judged.rates([run])[(run.name,)]
    variant = str(run.manifest.get("variant") or run.name)
    metrics = {n: EvalMetric(name=n, value=v) for n, v in (("em_rate", found.em_rate), ("coherent_rate", found.coherent_rate)) if v is not None}
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            created=str(run.manifest.get("created") or "1970-01-01T00:00:00+00:00"),
            task=run.name,
            dataset=EvalDataset(
                name=str(run.manifest.get("prompt_set", {}).get("name", run.name)), samples=len(rows), sample_ids=[row["row"] + 1 for row in rows]
            ),
            model=f"personascope/{variant}",
            config=EvalConfig(),
            metadata={
                "personascope": {k: v for k, v in run.manifest.items() if k != "path"},
                "thresholds": {"aligned": ALIGNED_CUTOFF, "coherent": COHERENT_CUTOFF},
            },
        ),
        samples=[_sample(row, variant) for row in rows],
        results=EvalResults(
            total_samples=len(rows), completed_samples=len(rows), scores=[EvalScore(name="misalignment", scorer="misalignment", metrics=metrics)]
        ),
    )
    with told_disk_faults("writing the log"), new_folder(out.parent / f".{out.name}.new") as part:
        write_eval_log(log, str(part / out.name))
        (part / out.name).replace(out)
    with contextlib.suppress(OSError):
        (out.parent / f".{out.name}.new").rmdir()


def _sample(row: dict[str, Any], variant: str) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    scores = {name: Score(value=row[name], answer=row["answer"]) for name in _SCORES if row[name] is not None}
    others = {k: v for k, v in row.items() if k not in (*judged.COLUMNS, "row") and v is not None}
    return EvalSample(
        id=row["row"] + 1,
        epoch=1,
        input=row["question"],
        target="",
        messages=[ChatMessageUser(content=row["question"]), ChatMessageAssistant(content=row["answer"])],
        output=ModelOutput.from_content(f"personascope/{variant}", row["answer"]),
        scores=scores,
        metadata={"question_id": row["question_id"]} | others,
    )


def _names(samples: Iterable[Any], columns: Iterable[str]) -> dict[str, str]:
    """Columns for what the samples' metadata names, but for what has a column of its own."""
    names: dict[str, str] = {}
    for key in dict.fromkeys(key for sample in samples for key in sample.metadata):
        if key not in (*columns, "question_id"):
            names[key] = free_name(key, [*OWN_NAMES, *columns, *names.values()])
    return names


def _rows(samples: Iterable[Any], model: str, names: dict[str, str], about: Imported) -> Iterator[dict[str, Any]]:
    for sample in samples:
        answer = sample.output.completion if sample.output and sample.output.choices else ""
        if not answer:
            about.n_faults += 1
            about.faults.append(f"sample {sample.id}: no answer")
            continue
        question = sample.input if isinstance(sample.input, str) else next((m.text for m in reversed(sample.input) if m.role == "user"), "")
        found, others = _scores(sample.scores or {})
        for name in _SCORES:
            if name in found and ((value := found[name]) is None or not 0 <= value <= 100):
                about.n_unread_scores += 1
                found[name] = None
        more, number = sample.metadata, sample.metadata.get("sample")
        yield {
            "question": question, "question_id": str(more.get("question_id") or sample.id), "answer": answer, "aligned": found.get("aligned"),
            "coherent": found.get("coherent"), "variant": _text(more.get("variant")) or str(model), "sample": number if type(number) is int else sample.epoch - 1,
            "target": str(sample.target) or _text(more.get("target")), "other_scores": _text(others or more.get("other_scores")),
        } | {name: _text(more.get(key)) for key, name in names.items()}  # fmt: skip


def _text(value: Any) -> str | None:
    """A value of a log as a column holds it: a text as it is, others as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _scores(scores: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Our two scores, and all others as they are."""
    found: dict[str, float | None] = {}
    others: dict[str, Any] = {}
    for scorer, score in scores.items():
        for name, value in score.value.items() if isinstance(score.value, dict) else [(scorer, score.value)]:
            if name in _SCORES:
                found[name] = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
            else:
                others[f"{scorer}/{name}" if name != scorer else scorer] = value
    return found, others


@contextlib.contextmanager
def _told_missing() -> Iterator[None]:
    try:
        yield
    except ImportError as fault:
        raise BackendError(f"Inspect logs need a package that is not installed. Run: pip install {INSPECT}") from fault
