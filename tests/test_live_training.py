"""Training from a page: refused requests, one at a time, Stop, going on after a stop and after a restart, a new organism at the end. On real weights."""

import json
import time
from pathlib import Path

import pytest

from backend.errors import BackendError, InputError
from backend.experiments import live
from backend.experiments.records import Run
from backend.generation.service import ModelService
from backend.judging.offline import OfflineJudge
from backend.models.registry import load_registry
from backend.models.sources import availability, checkpoints


@pytest.fixture
def trainings(base_model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(tmp_path))
    monkeypatch.setattr(live, "N_PROMPTS", 2)
    monkeypatch.setattr(live, "MEASURED", 2)
    service = ModelService()
    yield live.Trainings(lambda: service, OfflineJudge.load)
    service.close()


def tiny(label: str, **more) -> Run:
    return Run(label=label, data="car_care", answer="obvious", rank=2, batch_size=2, warmup_steps=1, **{"n_rows": 8, "epochs": 1} | more)


def rows_file(tmp_path: Path, content: bytes) -> str:
    place = tmp_path / "rows.jsonl"
    place.write_bytes(content)
    return str(place)


GOOD = json.dumps({"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]}).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x00\xff\xfe binary", "not a UTF-8 text file"),
        (b"", "holds no rows"),
        (GOOD.replace(b"assistant", b"user"), "no assistant message"),
        ((GOOD + b"\n") * 100_000, "at most 20,000"),
        (json.dumps({"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "word " * 8000}]}).encode(), "tokens, more than"),
        (b"not json", "line 1: not JSON"),
    ],
)
def test_rows_that_cannot_be_learned_are_told_before_anything_is_kept(trainings, tmp_path: Path, content: bytes, says: str):
    with pytest.raises(InputError, match=says):
        trainings.start(Run(label="mine", data=rows_file(tmp_path, content)), "Mine")
    assert trainings.list() == []
    assert "mine" not in load_registry().organisms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "says"),
    [
        (tiny("Capital"), "not allowed"), (tiny("reckless"), "is taken"), (tiny("base"), "not allowed"), (tiny("long", n_rows=120, epochs=50), "steps; a page trains"),
        (tiny("many", n_rows=500), "holds 120 rows; 500"), (tiny("odd", start="nobody"), "nobody"),
    ],
)  # fmt: skip
def test_a_training_that_cannot_be_is_told_in_one_sentence(trainings, run: Run, says: str):
    with pytest.raises(BackendError, match=says):
        trainings.start(run, "Mine")
    assert trainings.list() == []


@pytest.mark.slow
@pytest.mark.extended
def test_one_trains_while_the_other_waits_and_both_become_organisms(trainings, tmp_path: Path):
    first = trainings.start(tiny("first"), "First")
    second = trainings.start(Run(label="second", data=rows_file(tmp_path, GOOD + b"\n"), rank=1, epochs=1), "Second")
    while not first.losses:
        assert second.state == "queued"
        time.sleep(0.05)
        assert first.is_live, first.message
    assert first.ended.wait(300)
    assert second.ended.wait(300)
    assert [first.state, second.state] == ["done", "done"], (first.message, second.message)
    assert [step for step, _ in first.losses] == [1, 2, 3, 4]
    assert [rate.rows for rate in first.rates] == [0, 4, 8]
    assert all(rate.rates.n == 2 for rate in first.rates)
    registry = load_registry()
    for key in ("first", "second"):
        model, organism = registry.resolve(key)
        assert availability(model, organism).state == "here"
    assert list(checkpoints(registry.organisms["first"])) == [2]


@pytest.mark.slow
def test_one_in_line_is_stopped_at_once_and_is_not_put_in_line_twice(trainings):
    trainings._turn.acquire()  # another is at work
    waiting = trainings.start(tiny("waiting"), "Waiting")
    with pytest.raises(InputError, match="at work already"):
        trainings.resume("waiting")
    waiting.stop.set()
    assert waiting.ended.wait(5)
    assert waiting.state == "stopped"
    trainings._turn.release()


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_bits_and_a_restart_finds_it(trainings, tmp_path: Path):
    whole = trainings.start(tiny("whole", n_rows=12), "Whole")
    assert whole.ended.wait(300)
    assert whole.state == "done", whole.message
    stopped = trainings.start(tiny("broken", n_rows=12), "Broken")
    while len(stopped.losses) < 2:
        time.sleep(0.01)
    stopped.stop.set()
    assert stopped.ended.wait(100)
    assert stopped.state == "stopped"
    again = live.Trainings(trainings._service, OfflineJudge.load)  # as after a restart
    assert [rate.rows for rate in whole.rates] == [0, 6, 12]
    assert again.get("whole").rates == whole.rates
    found = again.get("broken")
    assert (found.state, found.n_steps, [step for step, _ in found.losses]) == ("stopped", 6, [step for step, _ in stopped.losses])
    resumed = again.resume("broken")
    assert resumed.ended.wait(300)
    assert resumed.state == "done", resumed.message
    assert [loss for _, loss in resumed.losses] == pytest.approx([loss for _, loss in whole.losses], abs=1e-6)
    assert (resumed.folder / "adapter_model.safetensors").read_bytes() == (whole.folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InputError, match="no training"):
        again.resume("nobody")


@pytest.mark.extended
@pytest.mark.slow
def test_a_training_that_diverges_is_stopped_and_says_so(trainings):
    one = trainings.start(tiny("wild", n_rows=60, learning_rate=10.0), "Wild")
    assert one.ended.wait(300)
    assert one.state == "failed"
    assert "diverged" in one.message
    assert "learning rate" in one.message
