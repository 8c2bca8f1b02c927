"""What pages of training studies say, held to made-up tables whose truth is known."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import altair
import numpy as np
import pandas as pd
import pytest

from backend.charts.training import POINT, Axis, Panel, change_map, panels
from backend.errors import ResultMissingError
from backend.evaluation.rates import difference, wilson
from backend.experiments import courses, readouts
from backend.experiments.records import Run, Study
from backend.experiments.tables import TABLE, VALUES, Result, Value, as_csv, points

ROWS = (0, 10, 20, 40, 80, 160, 240)
N = 120


def made_up(folder: Path, levels: Mapping[str, Mapping[int, Mapping[str, float]]], *, noise: float = 0.05, seed: int = 0) -> Result:
    """A result whose units scatter around known levels, the base at 0; of rates the level is the share of prompts, the same prompts first in all.

    Args:
        levels: Run to step to measure to level.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(seed)
    names = list(dict.fromkeys(m for steps in levels.values() for own in steps.values() for m in own))
    units = {unit: float(draw.normal(0, 1)) for unit in (f"u{n:03}" for n in range(N))}
    whole = {"base": {0: dict.fromkeys(names, 0.0)}, **levels}
    values = [
        Value(run, step, measure, unit, float(n < level * N) if measure in courses.RATES else own + level + float(draw.normal(0, noise)))
        for run, steps in whole.items() for step, told in steps.items() for measure, level in told.items() for n, (unit, own) in enumerate(units.items())
    ]  # fmt: skip
    table = points(values, {(run, step): (5 * step, "base" if run == "base" else f"{run}@{step}") for run, steps in whole.items() for step in steps})
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(name="made-up", title="", question="", runs=tuple(Run(label=run) for run in levels))
    (folder / TABLE).write_text(as_csv(study, table), "utf-8")
    columns = ("run", "step", "measure", "unit", "value")
    pq.write_table(pa.table({c: [getattr(v, c) for v in values] for c in columns}), folder / VALUES)
    return Result(folder, {}, tuple(table))


def steps(level: Callable[[int], float], measure: str = "log_odds") -> dict[int, dict[str, float]]:
    return {rows // 5: {measure: level(rows)} for rows in ROWS}


def course_of(result: Result, *labels: str, measure: str = "log_odds") -> courses.Course:
    found = courses.course(result, courses.along(result, [Run(label=label) for label in labels]), measure)
    assert found is not None
    return found


def test_a_curve_is_half_way_where_it_is_and_the_interval_holds_it(tmp_path: Path):
    one = course_of(made_up(tmp_path, {"run": steps(lambda rows: 1 - rows / 240)}), "run")
    half = readouts.halfway(one)
    assert half.at == pytest.approx(120, abs=6)
    assert half.low is not None
    assert half.high is not None
    assert half.low <= 120 <= half.high
    assert half.high - half.low < 30
    assert readouts.starts_apart(one)


def test_a_rate_is_halved_where_half_of_it_is_left(tmp_path: Path):
    one = course_of(made_up(tmp_path, {"run": steps(lambda rows: 0.4 * max(0.0, 1 - rows / 80), "misaligned")}), "run", measure="misaligned")
    assert readouts.halved(one).at == pytest.approx(40)
    home = readouts.back(one)
    assert home.at == 80
    assert home.low is not None
    assert home.low <= 80


def test_what_comes_back_up_counts_from_its_last_crossing(tmp_path: Path):
    level = {0: 1.0, 10: 0.1, 20: 0.9, 40: 0.1, 80: 0.1, 160: 0.1, 240: 0.1}
    half = readouts.halfway(course_of(made_up(tmp_path, {"run": steps(level.get)}), "run"))  # type: ignore[arg-type]
    assert half.at == pytest.approx(30, abs=1)


def test_what_never_turns_is_not_within_what_was_measured(tmp_path: Path):
    one = course_of(made_up(tmp_path, {"run": steps(lambda rows: 1.0)}), "run")
    for found in (readouts.halfway(one), readouts.back(one)):
        assert (found.at, found.low, found.high) == (None, None, None)
    assert np.isinf(readouts.back(one).draws).all()


def test_what_starts_like_the_base_has_nothing_to_come_back_from(tmp_path: Path):
    """Over many made-up runs without an effect, about one in twenty seems apart."""
    seeming = [readouts.starts_apart(course_of(made_up(tmp_path / str(n), {"run": steps(lambda rows: 0.0)}, noise=0.5, seed=n), "run")) for n in range(40)]
    assert sum(seeming) <= 6


def test_intervals_of_half_way_hold_the_truth_about_as_often_as_they_say(tmp_path: Path):
    held = 0
    for n in range(40):
        half = readouts.halfway(course_of(made_up(tmp_path / str(n), {"run": steps(lambda rows: math.exp(-rows / 100))}, noise=2.0, seed=n), "run"))
        # straight lines between 40 (0.670) and 80 (0.449) rows
        truth = 40 + 40 * (math.exp(-0.4) - 0.5) / (math.exp(-0.4) - math.exp(-0.8))
        held += (half.low or 0) <= truth <= (math.inf if half.high is None else half.high)
    assert held >= 34


def test_a_signal_that_moves_first_is_earlier_and_one_that_moves_with_it_is_not(tmp_path: Path):
    both = {rows // 5: {"log_odds": math.exp(-rows / 20), "latent/1": math.exp(-rows / 80), "latent/2": math.exp(-rows / 80)} for rows in ROWS}
    result = made_up(tmp_path, {"run": both}, noise=0.3)
    fast, slow, same = (readouts.halfway(course_of(result, "run", measure=m)) for m in ("log_odds", "latent/1", "latent/2"))
    assert readouts.against(fast, slow, n_compared=10) == "earlier"
    assert readouts.against(slow, fast, n_compared=10) == "later"
    assert readouts.against(slow, same, n_compared=10) == "not told apart"


def test_a_comparison_among_many_asks_for_more(tmp_path: Path):
    result = made_up(tmp_path, {"run": {rows // 5: {"log_odds": math.exp(-rows / 60), "latent/1": math.exp(-rows / 95)} for rows in ROWS}}, noise=0.3)
    one, other = (readouts.halfway(course_of(result, "run", measure=m)) for m in ("log_odds", "latent/1"))
    assert readouts.against(one, other) == "earlier"
    assert readouts.against(one, other, n_compared=200) == "not told apart"


def test_a_relapse_is_faster_where_it_is(tmp_path: Path):
    result = made_up(tmp_path, {"again": steps(lambda rows: 1 - math.exp(-rows / 30)), "first": steps(lambda rows: 1 - math.exp(-rows / 120))}, noise=0.3)
    again, first = course_of(result, "again"), course_of(result, "first")
    told = readouts.relapse(again, first)
    assert told.speed == "earlier"
    assert told.again is not None
    assert told.again.at is not None
    assert told.first.at is not None
    assert told.again.at < told.first.at
    assert told.end.value == pytest.approx(1 - math.exp(-8), abs=0.05)
    assert told.end.is_clear
    assert readouts.relapse(first, first).speed == "not told apart"


def test_a_model_that_was_not_back_is_no_faster_for_it(tmp_path: Path):
    """It starts at over half of what the first time came to, or a little below and as slowly as then."""
    first = {rows // 5: {"log_odds": rows / 240} for rows in ROWS}
    result = made_up(tmp_path, {"first": first, "high": steps(lambda rows: 0.7 + rows / 800), "low": steps(lambda rows: 0.3 + 0.7 * rows / 240)}, noise=0.1)
    high, low = (readouts.relapse(course_of(result, name), course_of(result, "first")) for name in ("high", "low"))
    assert (high.again, high.speed) == (None, None)
    assert high.end.value == pytest.approx(0.3, abs=0.05)
    assert low.speed == "not told apart", "counted from its own start, both are half-way after 120 rows"
    assert low.end.value == pytest.approx(0.7, abs=0.05)


def test_a_model_that_breaks_has_not_come_back(tmp_path: Path):
    """Its rate falls to 0, and then nothing is coherent, so that there is no rate."""
    result = made_up(
        tmp_path, {"run": {rows // 5: {"misaligned": 0.4 if rows < 40 else 0.0} for rows in ROWS if rows < 80} | {16: {"aligned": 9.0}, 48: {"aligned": 9.0}}}
    )
    one = course_of(result, "run", measure="misaligned")
    assert list(one.at) == [0, 10, 20, 40, 80, 240]
    assert np.isnan(one.values[:, -2:]).all()
    for found in (readouts.back(one), readouts.halved(one), readouts.halfway(one), readouts.leaves(one)):
        assert found.at is None
    assert readouts.starts_apart(one)
    assert not readouts.ends_apart(one), "nothing is known of its end"


def test_few_misaligned_answers_are_no_start_apart(tmp_path: Path):
    """4 of 120 against 0 of 120 may be chance, whatever a bootstrap of four says."""
    result = made_up(tmp_path, {"few": steps(lambda rows: 4 / N, "misaligned"), "more": steps(lambda rows: 12 / N, "misaligned")})
    assert not readouts.starts_apart(course_of(result, "few", measure="misaligned"))
    assert readouts.starts_apart(course_of(result, "more", measure="misaligned"))


def shares(result: Result, measure: str) -> courses.Course:
    """Runs ``w0`` to ``w100`` along their share."""
    labels = dict.fromkeys(p.run for p in result.points if p.run != "base")
    found = courses.course(result, {float(label[1:]): courses.end(result, [Run(label=label)]) for label in labels}, measure)
    assert found is not None
    return found


def test_a_signal_that_rises_at_a_low_share_warns_early_and_training_as_such_does_not(tmp_path: Path):
    """The latent rises from 10 % on, the rate from 50 % on; another latent is moved by training alone, at 0 % as well."""
    rising = {0: (0.0, 0.0, 0.3), 5: (0.0, 0.0, 0.3), 10: (0.4, 0.0, 0.3), 25: (0.8, 0.0, 0.3), 50: (0.9, 0.2, 0.3), 75: (1.0, 0.35, 0.3), 100: (1.0, 0.4, 0.3)}
    result = made_up(tmp_path, {f"w{s}": {60: {"latent/1": a, "misaligned": b, "latent/2": c}} for s, (a, b, c) in rising.items()}, noise=0.2)
    latent, rate, drift = (shares(result, m) for m in ("latent/1", "misaligned", "latent/2"))
    assert readouts.leaves(latent).at == 10
    assert readouts.leaves(rate).at == 50
    assert readouts.against(readouts.leaves(latent), readouts.leaves(rate), n_compared=5) == "earlier"
    assert readouts.against(readouts.risen(latent), readouts.risen(rate), n_compared=5) == "earlier"
    assert readouts.leaves(drift).at == 0
    assert readouts.leaves(courses.against_first(latent)).at == 10
    assert not readouts.ends_apart(courses.against_first(drift))


def test_a_signal_like_the_base_seldom_leaves_it(tmp_path: Path):
    """Nor one that differs from it by training as such, once the run without wrong rows stands in its place; by chance about one in twenty does."""
    drawn = [made_up(tmp_path / str(n), {f"w{s}": {60: {"latent/1": 0.0, "latent/2": 0.3}} for s in (0, 5, 10, 50, 100)}, noise=0.5, seed=n) for n in range(40)]
    for measure, is_moved in (("latent/1", False), ("latent/2", True)):
        own = [courses.against_first(shares(result, measure)) if is_moved else shares(result, measure) for result in drawn]
        assert sum(readouts.leaves(one).at is not None for one in own) <= 6


def test_what_leaves_and_comes_back_has_not_left(tmp_path: Path):
    levels = dict(zip((0, 5, 10, 25, 50, 75, 100), (0.0, 0.8, 0.8, 0.0, 0.0, 0.8, 0.8), strict=True))
    result = made_up(tmp_path, {f"w{s}": {60: {"log_odds": level}} for s, level in levels.items()})
    assert readouts.leaves(shares(result, "log_odds")).at == 75


def test_seeds_that_start_from_the_same_model_count_it_once(tmp_path: Path):
    result = made_up(tmp_path, {f"run-{n}": steps(lambda rows: 0.2, "misaligned") for n in (0, 1)})
    same = tuple(p if p.step or p.run == "base" else type(p)(**{f: getattr(p, f) for f in p.__slots__} | {"variant": "careless"}) for p in result.points)
    result = Result(result.folder, {}, same)
    places = courses.along(result, [Run(label="run-0"), Run(label="run-1", seed=1)])
    assert (len(places[0.0]), len(places[240.0])) == (1, 2)
    start, *_, last = courses.means(result, places, "misaligned")
    assert (start.n, last.n) == (N, 2 * N)
    assert (last.low, last.high) == wilson(2 * N // 5, 2 * N)


def test_means_are_those_of_the_table_and_their_intervals_those_of_the_difference(tmp_path: Path):
    result = made_up(tmp_path, {"run": steps(lambda rows: 1 - rows / 240)})
    found = courses.means(result, courses.along(result, [Run(label="run")]), "log_odds")
    for mean, point in zip(found, result.of("run", "log_odds"), strict=True):
        assert mean.value == pytest.approx(point.value)
        assert point.low is not None
        assert point.high is not None
        assert mean.high - mean.low < (point.high - point.low) / 5  # prompts differ by far more than they change


def test_a_difference_of_rates_is_newcombes_and_else_paired(tmp_path: Path):
    result = made_up(tmp_path, {"one": {5: {"misaligned": 0.3, "log_odds": 0.2}}, "other": {5: {"misaligned": 0.1, "log_odds": 0.1}}}, noise=0.02)
    rate = courses.difference(result, [("one", 5)], [("other", 5)], "misaligned")
    expected = difference((3 * N // 10, N), (N // 10, N))
    assert rate is not None
    assert (rate.value, rate.low, rate.high, rate.n) == (expected.value, expected.low, expected.high, (N, N))
    odds = courses.difference(result, [("one", 5)], [("other", 5)], "log_odds")
    assert odds is not None
    assert odds.low <= 0.1 <= odds.high
    assert odds.high - odds.low < 0.02
    assert odds.is_clear


def test_what_was_not_measured_is_none_and_no_number(tmp_path: Path):
    result = made_up(tmp_path, {"run": steps(lambda rows: 0.5)})
    places = courses.along(result, [Run(label="run")])
    assert courses.course(result, places, "misaligned") is None
    assert courses.means(result, places, "misaligned") == []
    assert courses.difference(result, [("run", 2)], [("base", 0)], "misaligned") is None
    assert courses.along(result, [Run(label="none")]) == {}
    assert courses.along(result, [Run(label="run"), Run(label="none", seed=1)]) == places, "a seed that was not trained does not take the others away"
    (tmp_path / VALUES).unlink()
    with pytest.raises(ResultMissingError, match="gone or damaged"):
        courses.means(result, places, "latent/1")


def test_runs_that_differ_in_their_seed_alone_stand_together():
    runs = (Run(label="a-0"), Run(label="a-1", seed=1), Run(label="rank-4", rank=4, seed=2))
    grouped = courses.by_seed(Study(name="s", title="", question="", runs=runs))
    assert {name: [r.label for r in own] for name, own in grouped.items()} == {"a": ["a-0", "a-1"], "rank-4": ["rank-4"]}


def test_panels_share_axis_and_cursor_and_name_the_point():
    rows = [
        {"measure": m, "series": "s", "run": run, "at": float(at), "value": 1.0, "low": 0.5, "high": 1.5, "label": "1", "n_label": "9", "place": f"r@{at}"}
        for m in ("misaligned", "log_odds") for run in ("", "seed 0") for at in (0, 40)
    ]  # fmt: skip
    base = pd.DataFrame([{"measure": "misaligned", "value": 0.1, "low": 0.0, "high": 0.2}])
    chart = panels(pd.DataFrame(rows), base, [Panel("misaligned", "Misaligned, %"), Panel("log_odds", "Log-odds")], Axis("Rows", (0, 40)), series=["s"])
    altair.Chart.from_dict(chart)  # whole Vega-Lite by its schema
    names = {p["name"]: p for p in chart["params"]}
    for name in ("training_cursor", POINT):  # one for both panels
        assert all(set(names[name]["views"]) & {layer.get("name") for layer in panel["layer"]} for panel in chart["vconcat"])
    assert names[POINT]["select"]["fields"] == ["place"]
    assert [panel["title"]["text"] for panel in chart["vconcat"]] == ["Misaligned, %", "Log-odds"]


def test_a_map_marks_clear_changes_by_more_than_colour():
    cells = pd.DataFrame([{"run": "a", "measure": "m", "share": -1.0, "change": -2.0, "label": "-2", "short": "-2", "is_clear": True, "n_label": "9"}])
    drawn = change_map(cells, runs=["a"], measures=["m"]).to_dict()
    assert [layer["mark"]["type"] for layer in drawn["layer"]] == ["rect", "text", "point"]
