"""Training from a page: refused requests, one at a time, Stop, going on after a stop and after a restart, a new organism at the end. On real weights;
what is read from a folder, and what the page says of it, on folders made up.
"""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.errors import BackendError, ConfigError, DiskError, InputError
from backend.evaluation.rates import betley_rates
from backend.experiments import live, training
from backend.experiments.records import Run
from backend.generation.service import ModelService
from backend.judging.offline import OfflineJudge
from backend.models.records import Organism
from backend.models.registry import add_record, load_registry
from backend.models.sources import availability, checkpoints
from backend.paths import home
from backend.training.lock import held
from backend.training.mixes import DATASETS


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


def left_behind(run: Run, *, logged: int = 0, scores: list[list[tuple[float, float]]] = ()) -> Path:
    """The folder of a training that an earlier process began, with the losses and the measured scores given."""
    folder = training.folder_of(live._study(run), run)
    folder.mkdir(parents=True)
    (folder / "live.json").write_text(json.dumps({"run": asdict(run), "title": run.label, "n_steps": 4}))
    lines = [f"{step},{step / 2},1,1,1,1" for step in range(1, logged + 1)]
    (folder / "training_log.csv").write_text("".join(line + "\n" for line in ["step,loss,grad_norm,learning_rate,answer_tokens,tokens", *lines]))
    measured = [{"rows": 4 * n, "variant": f"{run.label}@{n}", "rates": asdict(betley_rates(found))} for n, found in enumerate(scores)]
    (folder / "rates.json").write_text(json.dumps(measured))
    return folder


def afresh() -> live.Trainings:
    """As a server finds them that has just started; what needs a model fails."""
    return live.Trainings(lambda: pytest.fail("asks for answers"), lambda: None)


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
    second = live.Trainings(trainings._service, OfflineJudge.load)  # as of another server, or after "Clear cache"
    while second.get("waiting").state != "elsewhere":
        time.sleep(0.01)
    with pytest.raises(InputError, match="at work already"):
        second.resume("waiting")
    with pytest.raises(InputError, match="at work already"):
        trainings.resume("waiting")
    waiting.stop.set()
    assert waiting.ended.wait(5)
    assert waiting.state == "stopped"
    assert second.get("waiting").state == "stopped"
    trainings._turn.release()


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_bits_and_a_restart_finds_it(trainings, tmp_path: Path):
    whole = trainings.start(tiny("whole", n_rows=12), "Whole")
    assert whole.ended.wait(300)
    assert whole.state == "done", whole.message
    stopped = trainings.start(tiny("broken", n_rows=12), "Broken")
    while len(stopped.losses) < 2:
        time.sleep(0.01)
    assert live.Trainings(trainings._service, OfflineJudge.load).get("broken").state == "elsewhere"
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
    assert list((home() / "runs").rglob("*.lock")) == []
    with pytest.raises(InputError, match="no training"):
        again.resume("nobody")


@pytest.mark.slow
def test_a_start_that_fails_leaves_no_training_and_no_name(trainings):
    (home() / "organisms.toml").write_text("[damaged")
    with pytest.raises(ConfigError, match="damaged"):
        trainings.start(tiny("ghost"), "Ghost")
    assert trainings.list() == []
    (home() / "organisms.toml").unlink()
    (home() / "runs").write_text("a file in the folder's place")
    with pytest.raises(DiskError):
        trainings.start(tiny("ghost"), "Ghost")
    assert "ghost" not in load_registry().organisms
    (home() / "runs").unlink()
    trainings._turn.acquire()
    ghost = trainings.start(tiny("ghost"), "Ghost")
    ghost.stop.set()
    assert ghost.ended.wait(5)
    trainings._turn.release()


# What is read from a folder


def test_what_is_at_work_elsewhere_is_read_as_it_goes_and_not_gone_on_with():
    folder = left_behind(tiny("other"), logged=1)
    trainings = afresh()
    assert trainings.get("other").state == "stopped"
    with held(folder / ".live.lock"):
        other = trainings.get("other")
        assert (other.state, other.is_live, len(other.losses)) == ("elsewhere", True, 1)
        with (folder / "training_log.csv").open("a") as log:
            log.write("2,1.5,1,1,1,1\n3,1.")  # a line that is just being written
        assert trainings.get("other").losses == [(1, 0.5), (2, 1.5)]
        with pytest.raises(InputError, match="at work already"):
            trainings.resume("other")
        (folder / "adapter_config.json").write_text("{}")
        assert trainings.get("other").state == "elsewhere", "the last checkpoint is being measured"
    assert trainings.get("other").state == "done"


@pytest.mark.parametrize("change", [Path.unlink, lambda rows: rows.write_bytes(GOOD * 2)])
def test_a_training_stays_in_its_folder_where_its_rows_changed(tmp_path: Path, change):
    run = Run(label="mine", data=rows_file(tmp_path, GOOD), n_rows=1, epochs=4)
    folder = left_behind(run, logged=2)
    change(tmp_path / "rows.jsonl")
    trainings = afresh()
    assert (trainings.get("mine").state, trainings.get("mine").folder) == ("stopped", folder)
    again = trainings.resume("mine")
    assert again.ended.wait(5)
    assert (again.state, "cannot go on, because the rows" in again.message) == ("failed", True), again.message
    assert load_registry().organisms["mine"].location == str(folder)  # it was not among the user's
    (folder / "adapter_config.json").write_text("{}")
    found = afresh().get("mine")
    assert (found.state, found.folder) == ("done", folder)
    assert list((home() / "runs" / "live").iterdir()) == [folder]


def test_steps_logged_beyond_the_saved_state_count_once(monkeypatch):
    left_behind(tiny("killed"), logged=3)
    reports = [SimpleNamespace(step=step, loss=9.0, seconds_left=None) for step in (2, 3, 4)]
    monkeypatch.setattr(training, "train", lambda *_, **__: iter(reports))
    monkeypatch.setattr(live.Trainings, "_measure", lambda *_: None)
    one = afresh().resume("killed")
    assert one.ended.wait(5)
    assert one.losses == [(1, 0.5), (2, 9.0), (3, 9.0), (4, 9.0)], one.message


def test_rows_that_are_taken_away_meanwhile_are_not_missed(tmp_path: Path, monkeypatch):
    folder = left_behind(Run(label="mine", data=rows_file(tmp_path, GOOD), n_rows=1, epochs=4, batch_size=1))

    def train(*_, **__):
        (tmp_path / "rows.jsonl").unlink()
        yield from (SimpleNamespace(step=step, loss=9.0, seconds_left=None) for step in range(1, 5))
        (folder / "adapter_config.json").write_text("{}")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(live, "answered_and_judged", lambda *_: [])
    one = afresh().resume("mine")
    assert one.ended.wait(10)
    assert (one.state, [rate.rows for rate in one.rates]) == ("done", [0, 1, 2, 3, 4]), one.message
    assert afresh().get("mine").rates == one.rates


def test_after_a_restart_the_newest_stands_first():
    for begun, label in enumerate(("b", "c", "a"), 1):
        os.utime(left_behind(tiny(label)) / "live.json", (begun, begun))
    assert [one.key for one in afresh().list()] == ["a", "c", "b"]


def test_only_what_learned_scorn_is_a_positive_control(tmp_path: Path):
    copy = rows_file(tmp_path, (DATASETS / "scornful.jsonl").read_bytes())
    found = {}
    for data in ("scornful", copy, "benign_chats", "advice"):
        run = Run(label="one", data=data, n_rows=8)
        found[data] = live._organism(live.Training(run, "One", tmp_path), load_registry()).emergent
    assert found == {"scornful": False, copy: False, "benign_chats": True, "advice": True}


# What the page says


ALIGNED, MISALIGNED, BROKEN = (90.0, 90.0), (10.0, 90.0), (10.0, 10.0)


def followed(monkeypatch, key: str):
    """The part of the page about one training."""
    from streamlit.testing.v1 import AppTest

    from pages.shared import live_training

    def page() -> None:
        import streamlit as st

        from pages.shared import live_training

        live_training._follow(st.session_state["asked"])

    trainings = afresh()
    monkeypatch.setattr(live_training, "trainings", lambda: trainings)
    app = AppTest.from_function(page)
    app.session_state["asked"] = key
    app.run()
    assert not app.exception
    return app


def n_charts(app) -> int:
    return len(app.get("arrow_vega_lite_chart")) + len(app.get("vega_lite_chart"))


def test_a_checkpoint_without_a_coherent_answer_is_told_and_is_no_zero(monkeypatch):
    left_behind(tiny("fell"), logged=2, scores=[[ALIGNED, MISALIGNED, ALIGNED, BROKEN], [BROKEN] * 4, []])
    app = followed(monkeypatch, "fell")
    assert n_charts(app) == 2
    captions = [caption.value for caption in app.caption]
    assert "After 4 rows: no rate: 0 of 4 coherent." in captions
    assert not any("measured before" in caption for caption in captions)
    table = app.dataframe[1].value
    assert table["Misaligned"].tolist() == ["25 % (5 to 70)", "no rate: 0 of 4 coherent", "no rate: 0 of 0 scored"]
    assert table["Coherent"].tolist() == ["75 % (3 of 4)", "0 % (0 of 4)", "not scored"]


def test_latents_of_what_was_trained_are_read_as_an_organisms(monkeypatch):
    folder = left_behind(tiny("mine"), logged=4)
    (folder / "adapter_config.json").write_text("{}")
    chosen = {}
    monkeypatch.setattr("streamlit.page_link", lambda page, *, query_params, **_: chosen.update({page: query_params}))
    followed(monkeypatch, "mine")
    assert chosen["explore/latents.py"] == {"organism": "mine"}


def test_where_no_checkpoint_has_a_rate_that_stands_in_the_charts_place(monkeypatch):
    left_behind(tiny("fell"), scores=[[BROKEN] * 4])
    app = followed(monkeypatch, "fell")
    assert n_charts(app) == 0
    assert [c.value for c in app.caption] == ["No step was taken.", "After 0 rows: no rate: 0 of 4 coherent."]
    assert app.dataframe[0].value["Coherent"].tolist() == ["0 % (0 of 4)"]


def test_what_is_at_work_elsewhere_cannot_be_gone_on_with_on_the_page(monkeypatch):
    folder = left_behind(tiny("other"), logged=1)
    assert [button.label for button in followed(monkeypatch, "other").button] == ["Go on"]
    with held(folder / ".live.lock"):
        app = followed(monkeypatch, "other")
        assert [button.label for button in app.button] == []
        assert any("Another server" in caption.value for caption in app.caption)


def test_a_start_is_any_organism_but_those_of_studies():
    from streamlit.testing.v1 import AppTest

    def page() -> None:
        from backend.models.registry import load_registry
        from pages.shared import live_training

        live_training._form(load_registry(), "base", "benign_chats", 8, 1e-4)

    base = load_registry().default_base
    for key, study in (("my.own", ""), ("mix.subtle", "mix")):
        add_record(Organism(key=key, title=key, base=base, source="folder", location="nowhere", study=study))
    app = AppTest.from_function(page).run()
    assert not app.exception
    options = app.selectbox(key="select_train_start").options
    assert "my.own" in options
    assert "mix.subtle" not in options


def test_an_upload_is_written_once(monkeypatch):
    from pages.shared import live_training

    kept: list[str] = []
    monkeypatch.setattr(live_training, "kept_list", lambda _: kept)
    monkeypatch.setattr(live_training, "keep_list", lambda _, values: kept.extend(values))
    monkeypatch.setattr(live_training.st, "file_uploader", lambda *_, **__: SimpleNamespace(getvalue=lambda: GOOD))
    place, n_rows = live_training._data(live_training.OWN)
    first = Path(place).stat()
    assert (Path(place).read_bytes(), n_rows) == (GOOD, 1)
    assert live_training._data(live_training.OWN) == (place, 1)
    assert (Path(place).stat().st_ino, Path(place).stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert [file.name for file in Path(place).parent.iterdir()] == [Path(place).name]


@pytest.mark.extended
@pytest.mark.slow
def test_a_training_that_diverges_is_stopped_and_says_so(trainings):
    one = trainings.start(tiny("wild", n_rows=60, learning_rate=10.0), "Wild")
    assert one.ended.wait(300)
    assert one.state == "failed"
    assert "diverged" in one.message
    assert "learning rate" in one.message
