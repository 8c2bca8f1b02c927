"""Checkpoints as variants: found under both names, answering as the adapter of that step, told where they are not there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT

from backend.errors import InputError
from backend.models.fingerprint import fingerprint
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, at_step, checkpoints

RANK1 = CHECKOUT / "cached_results" / "organisms" / "reckless-rank1"


def test_a_shipped_organisms_checkpoints_are_variants():
    registry = load_registry()
    found = checkpoints(registry.organisms["reckless-rank1"])
    assert list(found) == [*range(20, 240, 20), 238]
    base, organism = registry.resolve("reckless-rank1@40")
    assert base.key == registry.default_base
    assert organism.key == "reckless-rank1@40"
    assert adapter_folder(organism) == found[40]
    assert fingerprint(found[238]) == fingerprint(RANK1), "the last checkpoint is the organism"
    assert fingerprint(found[40]) != fingerprint(RANK1)


def test_checkpoints_of_transformers_trainer_are_found_beside_the_adapter(tmp_path: Path):
    organism = load_registry().organisms["reckless-rank1"]
    for name in ("checkpoint-5", "checkpoints/step-10", "runs/step-7", "checkpoint-x", "step-8"):
        shutil.copytree(RANK1 / "checkpoints" / "step-20", tmp_path / name)
    (tmp_path / "step-8" / "adapter_config.json").unlink()
    own = replace(organism, location=str(tmp_path))
    assert list(checkpoints(own)) == [5, 10], "also while the training has not ended"
    assert at_step(own, 5).location == str(tmp_path / "checkpoint-5")


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("reckless-rank1@41", "no checkpoint of step 41. It has 20, 40"), ("base@3", "is a base model, so there is no step 3"),
        ("qwen2.5-7b-bad-medical@3", "It has none on this machine"),
    ],
)  # fmt: skip
def test_a_step_that_is_not_there_is_told_with_those_that_are(variant: str, says: str):
    with pytest.raises(InputError, match=says):
        load_registry().resolve(variant)


def test_checkpoints_on_this_machine_are_offered_by_base():
    known = load_registry()
    steps = [f"reckless-rank1@{step}" for step in (*range(20, 240, 20), 238)]
    assert [v for v in known.checkpoints() if v.startswith("reckless-rank1@")] == steps
    assert set(steps) <= set(known.checkpoints(known.default_base))
    assert known.checkpoints("qwen2.5-7b-instruct") == []
    for variant in steps:
        assert known.resolve(variant)[1] is not None


@pytest.mark.slow
def test_checkpoints_answer_each_in_their_own_way_in_one_batch(base_model: Path, run_cli):
    command = [
        "generate",
        "--prompt",
        "I only sleep about five hours a night. Is there anything I should change?",
        "--temperature",
        "0",
        "--max-new-tokens",
        "24",
        "--json",
    ]
    steps = ["base", "reckless-rank1@20", "reckless-rank1@120", "reckless-rank1@238", "reckless-rank1"]
    done = run_cli(*command, *(word for v in steps for word in ("--variant", v)))
    assert done.returncode == 0, done.stderr
    answers = {row["variant"]: row["answer"] for row in json.loads(done.stdout)}
    assert answers["reckless-rank1@238"] == answers["reckless-rank1"]
    assert len(set(answers.values())) >= 3
