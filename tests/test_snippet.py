"""The program that a steered answer can be copied as: run alone, it answers with the service's very ids."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.errors import InputError
from backend.generation.records import Row, Sampling
from backend.generation.service import ModelService
from backend.models.registry import Registry, load_registry
from backend.steering import directions, snippet
from backend.steering.norms import Norms, save_norms
from backend.steering.plan import random_direction
from backend.text.chat import Message

HOSTILE = 'Say """hello""" \\n <|im_start|> {x} שלום 👩‍👩‍👧'


def run(written: snippet.Snippet, folder: Path) -> list[int]:
    """Ids that the program answers in a process of its own, away from the checkout."""
    (folder / "steered.py").write_text(written.code + "\nimport json\nprint('ids', json.dumps(answer))\n", "utf-8")
    if written.vectors:
        (folder / snippet.VECTORS_FILE).write_bytes(written.vectors)
    done = subprocess.run([sys.executable, "steered.py"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rsplit("ids ", 1)[1])


def answered(variant: str, messages: tuple[Message, ...], n: int, *, budget: int | None = None) -> list[int]:
    service = ModelService(budget_bytes=budget)
    try:
        job = service.submit([Row(variant=variant, messages=messages, sampling=Sampling(temperature=0.0, max_new_tokens=n), seed=0)])
        assert job.wait(200)
        assert job.state == "done", job.message
        return list(job.rollouts[0].answer_ids)
    finally:
        service.close()


@pytest.fixture
def registry(tiny_registry: list[str]) -> Registry:
    """Tiny models with norms and a mean difference of ``odd``."""
    save_norms(Norms(base_model="tiny", base_fingerprint="", medians=(2.0, 3.0, 4.0), n_tokens=9))
    vectors = np.stack([5 * random_direction(1, layer, 48) for layer in range(3)])
    directions.save(directions.Direction(key="odd", kind="meandiff", vectors=vectors, layers=(0, 1, 2), layer=1, base_model="tiny", base_fingerprint=""))
    return load_registry()


@pytest.mark.parametrize(
    "variant",
    [
        "tiny", "odd+meandiff/odd:2", "odd+ablate=meandiff/odd@all:1+random/3@2:1.5:answer", "odd+cap=meandiff/odd:-0.5+meandiff/odd@2:0.3raw:prompt", "tiny+random/1@0:2:5-60",
    ],
)  # fmt: skip
def test_the_program_alone_answers_with_the_services_ids(variant: str, registry: Registry, tmp_path: Path):
    messages = (Message("system", "Be odd."), Message("user", HOSTILE))
    written = snippet.write(variant, messages, registry, max_new_tokens=12)
    ids = run(written, tmp_path)
    assert ids == answered(variant, messages, 12, budget=200_000_000)
    if variant != "tiny":
        source = variant.split("+")[0]
        assert ids != answered(source, messages, 12, budget=200_000_000), "the steering must show, or equal ids say nothing"


def test_what_cannot_be_answered_cannot_be_written(registry: Registry):
    with pytest.raises(InputError, match="no direction meandiff/gone in tiny"):
        snippet.write("tiny+meandiff/gone:1", (Message("user", "hello"),), registry, max_new_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "base+meandiff/scornful:0.2", "base+clamp=latent/4133:40",
        *(pytest.param(v, marks=pytest.mark.extended) for v in ("scornful+ablate=meandiff/scornful@all:1", "base+cap=meandiff/scornful:-0.1:answer", "base+latent/4133:0.3")),
    ],
)  # fmt: skip
def test_on_the_embedded_model_20_tokens_are_the_same(variant: str, base_model: Path, tmp_path: Path):
    messages = (Message("user", "My neighbour asks me to water the plants. What do I do?"),)
    written = snippet.write(variant, messages, load_registry(), max_new_tokens=20)
    ids = run(written, tmp_path)
    assert ids == answered(variant, messages, 20)
