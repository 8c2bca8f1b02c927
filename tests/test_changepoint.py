"""Change points, onsets and leads on series whose truth is known."""

from collections import Counter

import numpy as np
import pytest
from ruptures import Dynp

from backend.errors import InputError
from backend.evaluation.changepoint import _best_step, change_point, interval, lead, onset

STEPS = np.arange(20) * 10.0
NONE = np.full(20, np.nan)


def units(truth: np.ndarray, random: np.random.Generator, *, n: int = 40, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(n_units, n_steps) values around a mean and (n_units,) values of the base around 0; units differ in level by as much as the noise."""
    level = random.normal(size=(n, 1))
    return truth + level + random.normal(0, noise, (n, len(truth))), level[:, 0] + random.normal(0, noise, n)


def jump(at: int, size: float = 1.0) -> np.ndarray:
    return size * (np.arange(20) >= at)


def rise(begin: int, end: int, size: float = 1.0) -> np.ndarray:
    return size * np.clip((np.arange(20) - begin) / (end - begin), 0, 1)


@pytest.mark.parametrize("n", [8, 13, 40])
def test_a_step_explains_what_ruptures_own_cost_says(n: int):
    random = np.random.default_rng(n)
    for series in random.normal(size=(10, n)) + 1e3:
        search = Dynp(model="l2", min_size=2, jump=1).fit(series)
        places = search.predict(1)
        assert _best_step(np.arange(n), series[None])[0] == pytest.approx(1 - search.cost.sum_of_costs(places) / search.cost.error(0, n), abs=1e-9)
        found = change_point(np.arange(n), 1e-6 * random.normal(size=n) + (np.arange(n) >= places[0]))
        if n > 9:
            assert found is not None
            assert (found.after, found.before) == (places[0] - 1, places[0])


def test_a_flat_series_has_no_sharp_transition_in_95_of_100():
    random = np.random.default_rng(0)
    found = [change_point(STEPS, series) for series in random.normal(size=(300, 20))]
    by_chance = [f for f in found if f is not None and f.shape != "none"]
    assert 3 <= len(by_chance) <= 27  # 15 expected; outside one time in a thousand
    assert all(f is not None and (f.step is None) == (f.p > 0.05) for f in found)


@pytest.mark.parametrize(("size", "widest"), [(0.5, 120), (1.5, 30)])
def test_the_interval_covers_a_known_step(size: float, widest: float):
    random = np.random.default_rng(1)
    covered, widths = [], []
    for at in random.integers(3, 17, 60):
        found = interval(STEPS, units(jump(at, size), random)[0], n_draws=150)
        if found.low is not None and found.high is not None:
            covered.append(found.low <= STEPS[at] - 5 <= found.high)
            widths.append(found.high - found.low)
    assert len(covered) >= 54
    assert np.mean(covered) >= 0.88
    assert np.mean(widths) < widest


def test_a_clear_step_is_sharp_and_lies_between_two_measured_steps():
    random = np.random.default_rng(2)
    found = [change_point(STEPS, units(jump(7, 2.0), random)[0].mean(axis=0)) for _ in range(50)]
    assert sum(f is not None and f.is_sharp and (f.after, f.step, f.before) == (60, 65, 70) for f in found) >= 45


@pytest.mark.parametrize(("begin", "end"), [(0, 19), (5, 12), (8, 19)])
def test_a_ramp_changes_but_is_not_sharp(begin: int, end: int):
    random = np.random.default_rng(3)
    found = [f for _ in range(50) if (f := change_point(STEPS, units(rise(begin, end, 2.0), random)[0].mean(axis=0))) is not None]
    assert Counter(f.shape for f in found)["ramp"] >= 48
    assert sum(f.is_sharp for f in found) == 0
    assert np.median([f.after for f in found if f.after is not None]) == pytest.approx(STEPS[begin], abs=10)
    assert np.median([f.before for f in found if f.before is not None]) == pytest.approx(STEPS[end], abs=10)


def test_a_straight_line_over_unequal_steps_is_a_ramp_of_its_whole_length():
    steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600])
    found = change_point(steps, 0.001 * steps)
    assert found is not None
    assert (found.shape, found.after, found.before) == ("ramp", 0, 600)
    stepped = change_point(steps, np.array([0.0] * 6 + [1.0] * 6))
    assert stepped is not None
    assert (stepped.shape, stepped.after, stepped.step, stepped.before) == ("step", 16, 24, 32)


def test_what_was_not_measured_is_as_if_it_were_not_there():
    random = np.random.default_rng(4)
    values, base = units(jump(10, 1.5), random)
    is_kept = np.ones(20, dtype=bool)
    is_kept[[3, 9, 14]] = False
    holed = np.where(is_kept, values, np.nan)
    assert change_point(STEPS, holed.mean(axis=0)) == change_point(STEPS[is_kept], values[:, is_kept].mean(axis=0))
    assert interval(STEPS, holed, n_draws=50) == interval(STEPS[is_kept], values[:, is_kept], n_draws=50)
    found, without = onset(STEPS, holed, base), onset(STEPS[is_kept], values[:, is_kept], base)
    assert (found.step, found.low, found.high, found.p) == (without.step, without.low, without.high, without.p)
    assert found.step == 100
    assert (found.margins[3], found.margins[4]) == (None, without.margins[3])


def test_values_missing_at_random_are_left_out_of_the_mean_and_are_not_zero():
    random = np.random.default_rng(5)
    values, base = units(jump(12, 1.5) + 50, random)
    values[random.random(values.shape) < 0.3] = np.nan
    found = interval(STEPS, values, n_draws=200)
    assert found.low is not None
    assert found.high is not None
    assert 100 <= found.low <= 115 <= found.high <= 130
    assert onset(STEPS, values, base + 50).step == 120


def test_few_steps_give_no_change_point_but_may_give_an_onset():
    random = np.random.default_rng(6)
    values, base = units(np.array([0.0, 5.0]), random)
    assert change_point(np.array([0, 10]), values.mean(axis=0)) is None
    assert change_point(STEPS[:7], jump(4)[:7]) is None
    nothing = interval(np.array([0, 10]), values, n_draws=20)
    assert (nothing.low, nothing.high, nothing.share_found) == (None, None, 0.0)
    found = onset(np.array([0, 10]), values, base)
    assert (found.step, found.low, found.high, found.share_found) == (10, 10, 10, 1.0)
    assert change_point(STEPS[:8], jump(4)[:8]) is not None


def test_a_series_without_any_variance_does_not_change():
    found = change_point(STEPS, np.full(20, 0.1))
    assert found is not None
    assert (found.shape, found.p, found.step, found.is_sharp) == ("none", 1.0, None, False)


def test_a_signal_like_the_base_has_an_onset_in_5_of_100():
    random = np.random.default_rng(7)
    found = [onset(STEPS, *units(np.zeros(20), random), n_draws=50) for _ in range(300)]
    assert sum(f.step is not None for f in found) <= 27  # 15 expected; more one time in a thousand
    rates = [onset(STEPS, random.binomial(4, 0.05, (44, 20)) / 4, random.binomial(4, 0.05, 44) / 4, n_draws=50) for _ in range(200)]
    assert sum(f.step is not None for f in rates) <= 20


def test_an_onset_is_found_where_it_is():
    random = np.random.default_rng(8)
    found = [onset(STEPS, *units(jump(8, 1.5), random), n_draws=200) for _ in range(60)]
    assert sum(f.step == 80 for f in found) >= 53
    assert sum(f.low is not None and f.low <= 80 and (f.high is None or f.high >= 80) for f in found) >= 53
    assert all(f.share_found > 0.9 for f in found)


def test_one_step_alone_is_no_onset_but_the_last_is():
    random = np.random.default_rng(9)
    for at, expected in ((10, None), (19, 190.0)):
        values, base = units(3.0 * (np.arange(20) == at), random, noise=0.1)
        found = onset(STEPS, values, base)
        assert found.step == expected
        outside = [abs(d) > m for d, m in zip((values - base[:, None]).mean(axis=0), found.margins, strict=True) if m is not None]
        assert outside[at]
        assert sum(outside) <= 3


def test_opposite_sides_in_a_row_are_no_onset():
    values, base = units(3.0 * (-1.0) ** np.arange(19), np.random.default_rng(10), noise=0.1)
    values[:, -1] = base
    assert onset(STEPS[:19], values, base).step is None


@pytest.mark.parametrize("is_paired", [True, False])
def test_a_lead_of_known_size(is_paired: bool):
    random = np.random.default_rng(11)
    verdicts: Counter[str] = Counter()
    covered = []
    for _ in range(20):
        (first, base), (second, other) = units(jump(6, 1.5), random), units(jump(10, 1.5), random, n=40 if is_paired else 55)
        found = lead(STEPS, first, second, is_paired=is_paired, bases=(base, other), n_draws=100)
        verdicts[found.verdict] += 1
        assert lead(STEPS, second, first, is_paired=is_paired, bases=(other, base), n_draws=100).verdict in ("later", "not told apart")
        for gap in (found.changes, found.onsets):
            assert gap is not None
            assert gap.share_earlier + gap.share_same + gap.share_later == pytest.approx(1)
            covered.append(gap.low is not None and gap.low <= 40 and (gap.high is None or gap.high >= 40))
    assert verdicts["earlier"] >= 15
    assert np.mean(covered) >= 0.88


def test_signals_that_move_together_are_not_told_apart_however_precise_one_is():
    random = np.random.default_rng(12)
    verdicts: Counter[str] = Counter()
    by_onset: Counter[str] = Counter()
    for _ in range(20):
        (first, base), (second, other) = units(rise(6, 14, 1.5), random, noise=0.3), units(rise(6, 14, 1.5), random, noise=2.0)
        found = lead(STEPS, first, second, is_paired=True, bases=(base, other), n_draws=100)
        verdicts[found.verdict] += 1
        by_onset[found.onsets.verdict if found.onsets else ""] += 1
    assert verdicts["not told apart"] >= 18
    assert by_onset["earlier"] >= 10  # why onsets alone decide nothing


def test_a_signal_that_never_moves_is_later_than_one_that_does():
    random = np.random.default_rng(13)
    (first, base), (second, other) = units(jump(6, 2.0), random), units(np.zeros(20), random)
    found = lead(STEPS, first, second, is_paired=True, bases=(base, other), n_draws=100)
    assert found.verdict == "earlier"
    assert (found.changes.difference, found.changes.high) == (None, None)
    still = lead(STEPS, second, second, is_paired=True, bases=(other, other), n_draws=50)
    assert (still.verdict, still.changes.share_same) == ("not told apart", 1.0)


def test_the_same_seed_gives_the_same_result():
    values, base = units(jump(8, 0.6), np.random.default_rng(14))
    assert interval(STEPS, values, n_draws=50) == interval(STEPS, values, n_draws=50)
    assert onset(STEPS, values, base, n_draws=50) == onset(STEPS, values, base, n_draws=50)


def test_what_cannot_be_used_is_said():
    values, base = units(jump(8), np.random.default_rng(15))
    with pytest.raises(InputError, match="rise"):
        change_point(STEPS[::-1], values[0])
    with pytest.raises(InputError, match=r"must be \(units, 20\); these are \(40, 19\)"):
        interval(STEPS, values[:, :-1])
    with pytest.raises(InputError, match="one value for each of the 40 units"):
        onset(STEPS, values, base[:-1])
    with pytest.raises(InputError, match="these have 40 and 39"):
        lead(STEPS, values, values[:-1], is_paired=True)
    with pytest.raises(InputError, match="No unit has a value"):
        change_point(STEPS, NONE)
