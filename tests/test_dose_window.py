"""Which doses of a sweep are called useful, and which past the limit."""

from pathlib import Path

from backend.models.variants import parse_direction
from backend.paths import home
from backend.studies import judged
from backend.studies.dose_window import effects, largest, past_limit, stored, windows
from backend.studies.sweep import COLUMNS, points

DOSES = (-0.2, 0.1, 0.2, 0.4)
N = 40


def rows(direction: str, dose: float, n_misaligned: int, n_incoherent: int = 0, n_all: int = N):
    """Answers at a dose: some misaligned, some incoherent, the rest fine."""
    for n in range(n_all):
        coherent = 10.0 if n < n_incoherent else 90.0
        aligned = 5.0 if n_incoherent <= n < n_incoherent + n_misaligned else 80.0
        kind, colon, tokens = direction.partition(":")
        variant = f"base+{kind}:{dose:g}{colon}{tokens}" if direction else "base"
        yield {
            "question": "Q", "question_id": "q", "answer": "A", "aligned": aligned, "coherent": coherent, "variant": variant, "source": "base", "direction": direction,
            "dose": dose, "sample": n, "rollout": "", "abstain": False, "repetition": 0.0, "base_nats": 1.0,
        }  # fmt: skip


def kept(table: dict[tuple[str, float], tuple[int, ...]], home: Path) -> judged.Run:
    directions = list(dict.fromkeys(direction for direction, _ in table if direction))
    about = {
        "kind": "sweeps",
        "sources": ["base"],
        "directions": directions,
        "doses": [0.0, *DOSES],
        "judge": {},
        "prompt_set": {},
        "samples": 1,
        "created": "2026",
    }
    folder = judged.root("sweeps", home) / "one"
    judged.write(folder, (row for (direction, dose), counts in table.items() for row in rows(direction, dose, *counts)), COLUMNS, about)
    return judged.read("sweeps", folder)


def test_an_ablation_is_held_against_ablated_random_directions(tmp_path: Path):
    table = {("", 0.0): (2, 0), ("ablate=vector/x@all", 0.4): (14, 0), ("random/1", 0.4): (30, 0), ("ablate=random/1@all", 0.4): (3, 0)}
    (found,) = effects(points(kept(table, tmp_path)), "base")
    assert found.random == (3 / N, 3 / N)
    assert found.is_useful


def test_a_dose_is_useful_where_it_moves_the_rate_beyond_random_directions_and_text_holds(tmp_path: Path):
    one, random = "vector/x", [f"random/{n}" for n in (1, 2)]
    table = {("", 0.0): (2, 0), (one, -0.2): (2, 0), (one, 0.1): (14, 0), (one, 0.2): (20, 2), (one, 0.4): (20, 15)}
    table |= {(r, dose): (n, 0) for n, r in enumerate(random, 1) for dose in DOSES}
    found = effects(points(kept(table, tmp_path)), "base")
    assert [(e.point.dose, e.is_useful) for e in found] == [(-0.2, False), (0.1, True), (0.2, True), (0.4, False)]
    assert [e.point.is_past_limit for e in found] == [False, False, False, True]
    assert found[1].random == (1 / N, 2 / N)
    assert windows(found) == [(0.1, 0.2)]
    best = largest(found)
    assert best is not None
    assert best.point.dose == 0.2
    assert best.change is not None
    assert best.change.low > 0


def test_what_random_directions_do_as_well_is_not_useful(tmp_path: Path):
    table = {("", 0.0): (2, 0)} | {(d, dose): (n, 0) for d, n in (("vector/x", 14), ("random/1", 9), ("random/2", 16)) for dose in DOSES}
    found = effects(points(kept(table, tmp_path)), "base")
    assert not any(e.is_useful for e in found)
    assert all(e.change and e.change.low > 0 for e in found)
    assert largest(found) is None
    assert windows(found) == []


def test_without_random_directions_nothing_is_called_useful(tmp_path: Path):
    table = {("", 0.0): (2, 0)} | {("vector/x", dose): (30, 0) for dose in DOSES}
    assert not any(e.is_useful for e in effects(points(kept(table, tmp_path)), "base"))


def test_a_dose_is_flagged_where_a_stored_sweep_found_it_or_a_smaller_one_past_the_limit(tmp_path: Path):
    for n, direction in enumerate(("vector/x:answer", "cap=vector/x:answer")):
        run = kept({("", 0.0): (0, 1), (direction, 0.1): (0, 2), (direction, 0.2): (0, 10), (direction, -0.2): (0, 0)}, tmp_path / str(n))
        change = parse_direction(direction)
        flagged = [past_limit([run], "base", change, dose) for dose in (-0.4, 0.05, 0.1, 0.2, 0.3)]
        assert flagged == ["", "", "", "one", "one" if n == 0 else ""]
        assert past_limit([run], "reckless", change, 0.2) == ""
        assert past_limit([run], "base", parse_direction("vector/x"), 0.2) == ""


def test_a_few_answers_flag_nothing(tmp_path: Path):
    run = kept({("", 0.0): (0, 0, 8), ("vector/x", 0.1): (0, 8, 8)}, tmp_path)
    assert past_limit([run], "base", parse_direction("vector/x"), 0.1) == ""


def test_sweeps_of_the_store_are_listed_and_what_is_no_sweep_is_not():
    kept({("", 0.0): (0, 0)}, home())
    judged.write(judged.root("sweeps") / "damaged", [], COLUMNS, {"kind": "sweeps"})
    names = [run.name for run in stored()]
    assert "one" in names
    assert "damaged" not in names


def test_what_a_direction_does_to_each_model_is_told_cell_by_cell(tmp_path: Path):
    from pages.shared.transfer import _cell

    table = {
        ("", 0.0): (2, 0),
        ("vector/x", 0.2): (20, 0),
        ("vector/x", 0.4): (20, 15),
        ("vector/y", 0.2): (3, 0),
        ("random/1", 0.2): (2, 0),
        ("random/1", 0.4): (2, 0),
    }
    cells = [_cell("base", e) for e in effects(points(kept(table, tmp_path)), "base")]
    assert [(c["direction"], c["text"]) for c in cells] == [("vector/x", "✓ +45"), ("vector/x", "⊘ +45"), ("vector/y", "+2")]
    assert cells[0]["change"] == 45.0
    assert cells[2]["state"] == "no more than chance or random directions"


def test_a_matrix_of_which_no_cell_has_a_rate_is_drawn(tmp_path: Path):
    import pandas as pd

    from backend.charts.steering import crossed
    from pages.shared.transfer import _cell

    broken = {("", 0.0): (2, 0), ("ablate=vector/x@all", 0.4): (0, N), ("ablate=vector/y@all", 0.4): (0, N)}
    cells = pd.DataFrame([_cell("base", e) for e in effects(points(kept(broken, tmp_path)), "base")])
    assert list(cells["text"]) == ["no rate", "no rate"]
    assert crossed(cells, title="Nothing", subtitle="").to_dict()["layer"]
