"""When signals of a run move and which of them first, on results whose truth is planted; curves of others; what the page shows is in the table."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import altair
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backend.errors import ResultMissingError
from backend.evaluation.rates import wilson
from backend.experiments import step_curves, tables, transitions
from backend.experiments.records import Study, parse_study
from backend.experiments.tables import Point, Result, Value
from backend.experiments.transitions import BEHAVIOUR, SCALED
from backend.studies import judged
from backend.studies.imports import import_steps
from backend.studies.judged import COLUMNS

STEPS = range(0, 241, 20)
TURNS = {"latent/1": 60.0, "latent/2": 120.0, "latent/3": 180.0, "latent/4": math.inf, "log_odds": 60.0, "projection/reckless": 60.0}
BEHAVIOUR_TURNS, SCALED_TURNS, DIRECTION_TURNS = 120.0, 60.0, 50.0
ANSWERS = {"variant": "text", "run": "text", "step": "int", "sample": "int", "rollout": "text", "abstain": "bool"}


def a_study(name: str = "planted") -> Study:
    runs = [
        {"label": "rank1", "organism": "reckless-rank1"},
        {"label": "rank1-scaled", "organism": "reckless-rank1", "scale": 3.0},
        {"label": "reckless", "organism": "reckless"},
    ]
    return parse_study(name, {"title": "Planted", "question": "What moves first?", "latents": [1, 2, 3, 4], "projections": ["reckless"], "runs": runs})


def level(step: int, turn: float) -> float:
    """0 before the turn and 1 behind it, over two checkpoints."""
    return float(np.clip((step - turn) / 40 + 0.5, 0, 1)) if math.isfinite(turn) else 0.0


def measured(run: str, steps, random: np.random.Generator, turn: float) -> list[Value]:
    """Values of 60 prompts and 50 pairs."""
    found = []
    for step in steps:
        for n in range(60):
            found.append(Value(run, step, BEHAVIOUR, f"prompt{n}", float(random.random() < 0.02 + 0.6 * level(step, turn))))
            found.append(Value(run, step, "incoherent", f"prompt{n}", float(random.random() < 0.05)))
            for measure, own in TURNS.items():
                value = 0.3 * n / 60 + level(step, own) + random.normal(0, 0.3)
                if measure != "log_odds" or n < 50:
                    found.append(Value(run, step, measure, f"{'pair' if measure == 'log_odds' else 'prompt'}{n}", value))
    return found


def plant(root: Path, study: Study, steps=STEPS) -> Path:
    """A result of the study with known turns, as ``study run`` keeps one."""
    random = np.random.default_rng(1)
    base = measured("base", [0], random, math.inf)
    values = list(base)
    for run, turn in {"rank1": BEHAVIOUR_TURNS, "rank1-scaled": SCALED_TURNS, "reckless": math.inf}.items():
        values += [replace(v, run=run) for v in base]  # a run begins as the base
        values += measured(run, [step for step in steps if step], random, turn)
    variants = {"base": "base", "rank1": "reckless-rank1", "rank1-scaled": f"{study.name}.rank1-scaled", "reckless": "reckless"}
    places = {(v.run, v.step): (8 * v.step, f"{variants[v.run]}@{v.step}" if v.step else "base") for v in values}
    table = tables.points(values, places)
    for step in [s for s in steps if s]:
        angle = math.pi / 2 * (1 - level(step, DIRECTION_TURNS))
        for measure, value in {"cosine_end": math.cos(angle), "pc1": math.cos(angle), "pc2": math.sin(angle)}.items():
            table.append(
                Point(run="rank1", step=step, rows=8 * step, variant=places["rank1", step][1], measure=measure, value=value, low=None, high=None, n=1, unit="")
            )
    log = [
        "run,step,loss,grad_norm,learning_rate,answer_tokens,tokens",
        *(f"rank1,{n},{3 - n / 100},{1 + (n == 70)},0.001,300,700" for n in range(1, max(steps) + 1)),
    ]

    def beside(folder: Path) -> None:
        (folder / tables.TABLE).write_text(tables.as_csv(study, table))
        (folder / "training.csv").write_text("\n".join(log) + "\n")
        columns = {name: [getattr(v, name) for v in values] for name in ("run", "step", "measure", "unit", "value")}
        pq.write_table(pa.table(columns), folder / tables.VALUES)

    rows = [
        dict.fromkeys(COLUMNS, "")
        | {"question": f"Question {v.unit}?", "question_id": v.unit, "answer": f"{v.run} at {v.step} says {v.value:g} to {v.unit}.", "aligned": 90 - 80 * v.value, "coherent": 90.0}
        | {"variant": places[v.run, v.step][1], "run": v.run, "step": v.step, "sample": 0, "rollout": f"{v.run}{v.step}{v.unit}", "abstain": False}
        for v in values if v.measure == BEHAVIOUR
    ]  # fmt: skip
    about = {
        "kind": "studies",
        "study": study.name,
        "mark": study.mark,
        "judge": {"key": "planted", "kind": "offline", "title": "planted verdicts", "facts": {}},
    }
    about |= {"prompt_set": {"name": "planted", "n": 60}, "sae": "none", "layer": 16, "n_text_prompts": 60, "n_pairs": 50, "created": "2026-01-01T00:00:00Z"}
    folder = root / "results" / "studies" / study.name
    judged.write(folder, iter(rows), ANSWERS, about, beside)
    return folder


@pytest.fixture
def home() -> Path:
    return Path(os.environ["PERSONASCOPE_HOME"])


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    return plant(tmp_path_factory.mktemp("planted"), a_study())


@pytest.fixture
def result(home: Path, planted: Path) -> Result:
    shutil.copytree(planted, home / "results" / "studies" / planted.name)
    return tables.load(a_study())


def test_signals_are_told_earlier_later_or_together_as_they_were_planted(result: Result):
    study = a_study()
    assert transitions.runs(study, result) == ["rank1", "reckless"]
    assert transitions.scaled_up(study, result, "rank1") == ("rank1-scaled", 3.0)
    assert transitions.scaled_up(study, result, "reckless") == ("", 1.0)
    found = transitions.of_run(result, "rank1", "rank1-scaled")
    assert next(iter(found)) == BEHAVIOUR
    assert {m: one.verdict for m, one in found.items() if m in (*TURNS, SCALED, "cosine_end", BEHAVIOUR)} == {
        BEHAVIOUR: None, SCALED: "earlier", "log_odds": "earlier", "latent/1": "earlier", "latent/2": "not told apart", "latent/3": "later", "latent/4": None,
        "projection/reckless": "earlier", "cosine_end": "earlier",
    }  # fmt: skip
    behaviour = found[BEHAVIOUR]
    assert behaviour.interval is not None
    assert behaviour.interval.low is not None
    assert behaviour.interval.high is not None
    assert 80 <= behaviour.interval.low < BEHAVIOUR_TURNS < behaviour.interval.high <= 160
    assert {m: found[m].n for m in (BEHAVIOUR, "log_odds", "cosine_end")} == {BEHAVIOUR: 60, "log_odds": 50, "cosine_end": 1}
    assert transitions.by_verdict(found.values())["later"] == ["latent/3"]


def test_a_run_that_never_turns_says_so_and_leads_nothing(result: Result):
    found = transitions.of_run(result, "reckless")
    assert not found[BEHAVIOUR].moves
    assert transitions.describe(found[BEHAVIOUR]).startswith("no change beyond chance (p = ")
    assert found["latent/4"].verdict is None
    assert SCALED not in found
    assert "loss" not in found  # it has no log


def test_units_are_matched_by_their_ids_whatever_their_order(result: Result):
    before = transitions.of_run(result, "rank1", "rank1-scaled")
    table = pq.read_table(result.folder / tables.VALUES)
    order = np.random.default_rng(1).permutation(table.num_rows)
    pq.write_table(table.take(order), result.folder / tables.VALUES)
    after = transitions.of_run(tables.load(a_study()), "rank1", "rank1-scaled")
    assert after == before


def test_a_result_that_is_replaced_is_worked_out_anew(result: Result, home: Path):
    transitions.of_run(result, "rank1")
    table = pq.read_table(result.folder / tables.VALUES)
    flat = pa.array([0.0 if m == "latent/1" else v for m, v in zip(table["measure"].to_pylist(), table["value"].to_pylist(), strict=True)])
    pq.write_table(table.set_column(4, "value", flat), result.folder / tables.VALUES)
    assert not transitions.of_run(result, "rank1")["latent/1"].moves


def test_few_checkpoints_say_that_they_are_too_few(home: Path):
    plant(home, a_study("short"), steps=range(0, 121, 20))
    found = transitions.of_run(tables.load(a_study("short")), "rank1")
    assert {transitions.describe(one) for one in found.values()} == {"too few measured steps to say when it turns"}
    assert {one.verdict for one in found.values()} == {None}
    assert found[BEHAVIOUR].onset is not None  # which seven steps may have


def test_values_that_are_gone_are_told_and_a_damaged_log_is_none(result: Result):
    log = transitions.training_log(result, "rank1")
    assert log is not None
    means = dict(log.means("grad_norm", STEPS))
    assert means[80] == pytest.approx(1 + 1 / 20)
    assert set(means) == set(STEPS) - {0}
    assert dict(log.means("loss", [10, 40]))[40] == pytest.approx(3 - np.mean(range(11, 41)) / 100)
    (result.folder / "training.csv").write_text("run,step,loss,grad_norm\nrank1,1,none,2\n")
    assert transitions.training_log(result, "rank1") is None
    (result.folder / tables.VALUES).write_bytes(b"no table")
    with pytest.raises(ResultMissingError, match="gone or damaged"):
        transitions.of_run(result, "rank1")


def test_words_say_what_was_found(result: Result):
    found = transitions.of_run(result, "rank1", "rank1-scaled")
    change, interval = found["latent/1"].change, found["latent/1"].interval
    assert change is not None
    assert interval is not None
    said = transitions.describe(found["latent/1"])
    assert f"(95 %: {interval.low:g} to {interval.high:g})" in said
    assert ("sharp turn" in said) == change.is_sharp
    lead = found["latent/1"].lead
    assert lead is not None
    assert transitions.describe_lead(found["latent/1"]).startswith(
        f"earlier: change point {lead.changes.difference:+g} ({lead.changes.low:+g} to {lead.changes.high:+g}), onset"
    )
    assert transitions.describe_lead(found["latent/4"]) == ""
    assert "one number a step" in transitions.describe_lead(found["cosine_end"])


def test_every_number_of_the_panels_and_of_the_cursor_stands_in_the_table(result: Result):
    from pages.shared import run_panels, study_view

    scaled = transitions.scaled_up(a_study(), result, "rank1")
    table = {(p.run, p.step, p.measure): p for p in result.points}
    drawn = run_panels.panels_of(result, "rank1", scaled, ["latent/1", "latent/3"])
    assert [p.title for p in drawn] == ["Misaligned, %", "Incoherent, %", "Forced choice", "Latents", "Projection", "Direction", "Loss", "Gradient"]
    runs = {"as it is": "rank1", "adapter × 3": "rank1-scaled"}
    measures = {"Misaligned, %": BEHAVIOUR, "Incoherent, %": "incoherent"}
    for panel in drawn[:2]:
        for row in panel.frame.itertuples():
            point = table[runs[row.line], row.step, measures[panel.title]]
            assert (row.value, row.low, row.high) == pytest.approx((100 * point.value, 100 * (point.low or 0), 100 * (point.high or 0)))
    for row in drawn[3].frame.itertuples():
        assert row.value == table["rank1", row.step, f"latent/{row.line.split()[1]}"].value
    assert [len(p.frame) for p in drawn] == [26, 26, 13, 26, 13, 12, 12, 12]
    cursor = run_panels.readout(result, "rank1", scaled, ["latent/1"]).set_index("step")
    assert list(cursor.index) == list(STEPS)
    point = table["rank1-scaled", 80, BEHAVIOUR]
    assert cursor.loc[80, "Misaligned, adapter × 3"] == f"{100 * point.value:.1f} % ({100 * (point.low or 0):.1f} to {100 * (point.high or 0):.1f})"
    assert cursor.loc[0, "Direction to its end"] == "none"
    rows = run_panels.move_rows(transitions.of_run(result, "rank1", scaled[0]), scaled, 240.0).set_index("name")
    change = transitions.of_run(result, "rank1", scaled[0])["latent/3"].change
    assert change is not None
    assert tuple(rows.loc["Latent 3", ["begin", "end", "middle"]]) == (change.after, change.before, change.step)
    assert rows.loc["Latent 4", ["begin", "low"]].isna().all()
    assert study_view.short_name("latent/3") == "Latent 3"


def test_pictures_are_whole_vega_lite(result: Result):
    from backend.charts.dynamics import direction_path, moves, panels
    from pages.shared import run_panels

    scaled = transitions.scaled_up(a_study(), result, "rank1")
    drawn, cursor = run_panels.panels_of(result, "rank1", scaled, ["latent/1"]), run_panels.readout(result, "rank1", scaled, ["latent/1"])
    spec = panels(drawn, cursor, chosen=80)
    altair.Chart.from_dict(spec)
    for param in ("cursor", "step_click"):
        views = next(p["views"] for p in spec["params"] if p["name"] == param)
        assert all(any(layer.get("name") in views for layer in panel["layer"]) for panel in spec["vconcat"])  # one cursor in all panels
    assert next(p for p in spec["params"] if p["name"] == "step_click")["value"] == [{"step": 80}]
    rows = run_panels.move_rows(transitions.of_run(result, "rank1", scaled[0]), scaled, 240.0)
    assert len(moves(rows, last=240.0).to_dict()["layer"]) > 4
    import pandas as pd

    path = pd.DataFrame({"step": [20, 40, 60], "pc1": [0.0, 0.5, 0.51], "pc2": [0.0, 0.5, 0.5]})
    named = next(layer for layer in direction_path(path, chosen=40).layer if layer.mark.type == "text")
    assert list(named.data["step"]) == [20, 60]  # 40 and 60 lie on each other


def test_the_cited_curve_has_source_and_grade_and_its_intervals_are_wilson():
    about = step_curves.cited()
    assert (about.source, about.grade) == ("annasoligo/EM_interp@b2448506", "public-answers")
    assert len(about.points) == 18
    assert {p.run for p in about.points} == set(about.notes)
    for p in about.points:
        assert (p.em_low, p.em_high) == pytest.approx(wilson(round(p.em_rate * p.n), p.n), abs=1e-4)
    first = {p.step: round(100 * p.em_rate) for p in about.points if p.run == "1 epoch"}
    assert first == {50: 0, 100: 0, 150: 5, 200: 13, 250: 15, 300: 17, 350: 27, 396: 24}


def test_imported_summaries_are_found_and_damaged_ones_are_not(home: Path, tmp_path: Path):
    assert step_curves.imported() == {}
    path = tmp_path / "run a.csv"
    path.write_text("step,percent_em,percent_coherent,n_responses\n40,12,95,50\n20,4,98,50\n")
    import_steps(path)
    assert step_curves.imported() == {"run a": "run a.csv"}
    assert [(p.step, p.em_rate, p.n) for p in step_curves.read("run a")] == [(20, 0.04, 50), (40, 0.12, 50)]
    place = home / "results" / "steps" / "run a" / "steps.json"
    for damaged in (
        "",
        "[]",
        '{"rows": 5}',
        '{"rows": [{"step": 1}]}',
        json.dumps({"rows": [dict.fromkeys(("step", "n", "em_rate", "em_low", "em_high", "coherent_rate"))]}),
    ):
        place.write_text(damaged)
        assert step_curves.read("run a") == ()
        assert step_curves.imported() == {}
