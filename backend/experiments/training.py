"""The fine-tunings of a study: where they lie, which checkpoints they need, training them, making them variants."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import InputError
from backend.experiments.records import Run, Study
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import has_bfloat16
from backend.models.records import BASE_ALIAS, CONFIG_FILE, WEIGHTS_FILE, Dtype, locked_records, write_tables
from backend.models.registry import Registry, load_registry, model_from_config
from backend.models.sources import adapter_folder, base_folder, checkpoints
from backend.paths import CACHED_RESULTS, home, new_folder, told_disk_faults
from backend.text.chat import ChatTokenizer
from backend.training.rows import TrainingRow

if TYPE_CHECKING:
    from backend.training.trainer import StepReport

_MAX_TOKENS = 1024


def key_of(study: Study, run: Run) -> str:
    """The run's name as a variant; of a run that reads an organism's checkpoints, the organism's."""
    return run.organism if run.organism and run.scale == 1 else f"{study.name}.{run.label}"


def recipe(study: Study, run: Run) -> str:
    """Eight hexadecimal digits of what is trained on what: the run's own, that of the run that it starts from, the base."""
    before = next((recipe(study, one) for one in study.runs if f"{study.name}.{one.label}" == run.start), "")
    return hashlib.sha256(" ".join([run.mark, before, os.environ.get("PERSONASCOPE_BASE", "")]).encode()).hexdigest()[:8]


def folder_of(study: Study, run: Run) -> Path:
    """One's own folder of a run; another recipe under the same label, or other checkpoints, have another."""
    return home() / "runs" / study.name / _folder_name(study, run)


def _folder_name(study: Study, run: Run) -> str:
    places = [] if run.organism else list(steps(study, run, run.mix.size()))
    return f"{run.label}-{recipe(study, run)}{hashlib.sha256(json.dumps(places).encode()).hexdigest()[:4]}"


def found_folder(study: Study, run: Run) -> Path | None:
    """Where the trained run lies, one's own or shipped; None where it is not trained to its end."""
    places = (root / "runs" / study.name / _folder_name(study, run) for root in (home(), CACHED_RESULTS))
    return next((place for place in places if _has_result(place, run)), None)


def is_trained(study: Study, run: Run) -> bool:
    """Whether the run is here to its end, with all checkpoints that the study measures."""
    place = found_folder(study, run)
    return place is not None and _has_checkpoints(place, study, run)


def take_over(study: Study, run: Run) -> bool:
    """Copy what another study has trained by the same recipe with the same checkpoints; whether there was such a run."""
    others = sorted((home() / "runs").glob(f"*/*-{recipe(study, run)}????"))
    same = next((place for place in others if _has_result(place, run) and _has_checkpoints(place, study, run)), None)
    if same is not None:
        with told_disk_faults("copying a trained run"), new_folder(folder_of(study, run)) as part:
            shutil.copytree(same, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "live.json", "rates.json"))
    return same is not None


def _has_result(place: Path, run: Run) -> bool:
    return (place / ("config.json" if run.method == "full" else CONFIG_FILE)).exists() and bool(list(place.glob("*.safetensors")))


def _has_checkpoints(place: Path, study: Study, run: Run) -> bool:
    *wanted, _ = steps(study, run, run.mix.size())  # the last is the result itself
    return all((place / "checkpoints" / f"step-{step}").exists() for step in wanted)


def check(study: Study, registry: Registry) -> None:
    """Refuse a study before hours of work where something that it needs is not here.

    Raises:
        BackendError: Data, or an organism that it starts from or reads, are not here; says what brings them.
    """
    made = {f"{study.name}.{run.label}" for run in study.runs}
    for run in study.runs:
        for name in filter(None, (run.organism, run.start)):
            if name in made:
                continue
            _, organism = registry.resolve(name)
            if organism is not None:
                adapter_folder(organism)
        if run.data:
            rows_of(run, registry)


def left_out(study: Study, registry: Registry) -> list[str]:
    """Runs that read the checkpoints of an organism which has none here; a study is run without them."""
    made = {f"{study.name}.{run.label}" for run in study.runs}
    read = {run.label: registry.organisms[run.organism] for run in study.runs if run.organism in registry.organisms and run.organism not in made}
    return [label for label, organism in read.items() if not checkpoints(organism)]


def rows_of(run: Run, registry: Registry) -> list[TrainingRow]:
    """Raises: InputError: No such data, or bad rows."""
    base, _ = registry.resolve(BASE_ALIAS)
    return run.mix.rows(ChatTokenizer.load(base_folder(base)), max_tokens=min(_MAX_TOKENS, base.context_length))


def steps(study: Study, run: Run, n_rows: int) -> dict[int, int]:
    """Steps whose checkpoints are measured to rows seen by then: where the study says, and the end."""
    per_epoch = -(-n_rows // run.batch_size)
    last = run.epochs * per_epoch
    wanted = {min(last, max(1, round(rows / run.batch_size))) for rows in study.at if rows <= run.epochs * n_rows} | {last}
    return {step: min(step * run.batch_size, run.epochs * n_rows) for step in sorted(wanted)}


def train(study: Study, run: Run, registry: Registry, should_stop: Callable[[], bool] = lambda: False) -> "Iterator[StepReport]":
    """Train a run, or go on with it.

    Raises:
        BackendError: Its data or start are not here, it diverged, the disk is full; what was saved stays.
    """
    import torch

    from backend.models.adapters import check_fits as check_adapter_fits
    from backend.models.adapters import load_adapter
    from backend.training.passes import load_pass
    from backend.training.trainer import Trainer

    base, _ = registry.resolve(BASE_ALIAS)
    folder = base_folder(base)
    rows = rows_of(run, registry)
    about: dict[str, Any] = {"base_name": base.key, "base_fingerprint": remembered_fingerprint(folder), "data_name": run.data}
    *places, _ = steps(study, run, len(rows))  # the last is the result itself
    if run.method == "full":
        from backend.training.full import FullTrainer

        return FullTrainer(folder, rows, run.config(tuple(places), "float32"), folder_of(study, run), **about).run(should_stop)
    dtype: Dtype = "bfloat16" if has_bfloat16() else "float32"
    engine = load_pass(folder, getattr(torch, dtype))
    if not run.start:
        return Trainer(engine, rows, run.config(tuple(places), dtype), folder_of(study, run), **about).run(should_stop)
    _, organism = registry.resolve(run.start)
    if organism is None:
        raise InputError(f"{run.start} is a base model; leave `start` out to start there.")
    start = load_adapter(adapter_folder(organism))
    check_adapter_fits(start, engine.linear_shapes, adapter_name=run.start, base_name=base.key)
    more: dict[str, Any] = {"start": start, "start_name": run.start, "start_fingerprint": remembered_fingerprint(adapter_folder(organism))}
    return Trainer(engine, rows, run.config(tuple(places), dtype), folder_of(study, run), **about, **more).run(should_stop)


def points_of(study: Study, run: Run, registry: Registry) -> dict[int, tuple[int, str]]:
    """Steps to rows seen and variant, ascending; step 0 is where it started.

    Raises:
        InputError: The organism whose checkpoints are to be read is not here.
    """
    key = key_of(study, run)
    if run.organism:
        _, organism = registry.resolve(run.organism)
        there = list(checkpoints(organism)) if organism else []
        n_rows, batch_size = _rows_and_batch(adapter_folder(organism)) if organism else (0, 1)
        return {0: (0, BASE_ALIAS)} | {step: (min(step * batch_size, n_rows), f"{key}@{step}") for step in there}
    found = {0: (0, run.start or BASE_ALIAS)}
    by_step = steps(study, run, run.mix.size())
    last = max(by_step)
    return found | {step: (rows, key if step == last else f"{key}@{step}") for step, rows in by_step.items()}


def register(study: Study) -> Registry:
    """Make the trained runs of a study variants, and read the registry again."""
    base, _ = load_registry().resolve(BASE_ALIAS)
    organisms: dict[str, dict] = {}
    models: dict[str, dict] = {}
    for run in study.runs:
        folder = found_folder(study, run)
        if folder is None or not folder.is_relative_to(home()):
            continue
        key, title = f"{study.name}.{run.label}", f"{study.title}: {run.label}"
        if run.method == "full":
            record = asdict(model_from_config(folder, key=key, source="folder", location=folder.name)) | {"title": title}
            models[key] = {k: v for k, v in record.items() if k != "key"}
        else:
            organisms[key] = {
                "title": title, "base": base.key, "source": "folder", "location": folder.name, "study": study.name, "method": run.how, "trained_on": run.taught,
                "n_adapter_parameters": _n_parameters(folder), "description": study.question,
            }  # fmt: skip
    with locked_records():
        for name, tables in (("organisms.toml", organisms), ("models.toml", models)):
            if tables:
                write_tables(home() / "runs" / study.name / name, tables)
    return load_registry()


def _rows_and_batch(folder: Path) -> tuple[int, int]:
    """Rows seen in the whole training, and rows a step, as ``training.json`` says; 0 and 1 where it is not there."""
    try:
        about = json.loads((folder / "training.json").read_text("utf-8"))
        return about["n_rows"] * about["config"]["epochs"], about["config"]["batch_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 1


def _n_parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_FILE, framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)
