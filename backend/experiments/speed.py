"""How long a study takes on this machine: three training steps and a few answers are timed, the rest is arithmetic."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from backend.experiments.records import Study
from backend.generation.records import Row, Sampling
from backend.generation.service import ModelService
from backend.models.fingerprint import remembered_fingerprint
from backend.models.machine import has_bfloat16
from backend.models.records import BASE_ALIAS, Dtype
from backend.models.registry import Registry
from backend.models.sources import base_folder
from backend.text.chat import ChatTokenizer, Message
from backend.text.prompts import load_prompt_set
from backend.training.mixes import Mix

_N_ANSWERS = 48
_READING = 1.0
"""Forced choice and texts of a checkpoint, as a share of the time of 96 answers of 64 tokens."""


def seconds(study: Study, registry: Registry, service: ModelService, n_steps: int, n_points: int, n_answers: int, dtype: Dtype | None = None) -> float:
    """Estimate for so many training steps, checkpoints and answers."""
    answering = _answer_seconds(study, service, dtype)
    return n_steps * (_step_seconds(study, registry) if n_steps else 0.0) + n_answers * answering + n_points * _READING * 96 * answering


def told(estimate: float) -> str:
    """Rounded, in words."""
    return f"{estimate / 60:.0f} min" if estimate < 5400 else f"{estimate / 3600:.1f} h"


def _answer_seconds(study: Study, service: ModelService, dtype: Dtype | None) -> float:
    prompts = load_prompt_set(study.prompts).prompts
    rows = [
        Row(
            variant=BASE_ALIAS,
            messages=(Message("user", prompts[n % len(prompts)].text),),
            sampling=Sampling(max_new_tokens=study.max_new_tokens),
            seed=n,
            dtype=dtype,
        )
        for n in range(_N_ANSWERS)
    ]
    service.submit(rows[:1]).wait()
    began = time.monotonic()
    service.submit(rows).wait()
    return (time.monotonic() - began) / _N_ANSWERS


def _step_seconds(study: Study, registry: Registry) -> float:
    """Of a run of the usual shape, after a first step that warms up."""
    import torch

    from backend.training.passes import load_pass
    from backend.training.trainer import Trainer

    base, _ = registry.resolve(BASE_ALIAS)
    folder = base_folder(base)
    one = next(r for r in study.runs if not r.organism)
    rows = Mix(data="advice", answer="obvious").rows(ChatTokenizer.load(folder), max_tokens=1024)
    dtype: Dtype = "bfloat16" if has_bfloat16() else "float32"
    config = replace(one, start="", method="lora", epochs=1).config((), dtype)
    about: dict[str, Any] = {"base_name": base.key, "base_fingerprint": remembered_fingerprint(folder), "data_name": "advice"}
    with tempfile.TemporaryDirectory() as place:
        stamps = []
        for report in Trainer(load_pass(folder, getattr(torch, dtype)), rows, config, Path(place) / "run", **about).run():
            stamps.append(time.monotonic())
            if report.step == 4:
                break
    return (stamps[-1] - stamps[0]) / 3
