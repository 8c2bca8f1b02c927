"""Re-alignment and Data mix in a real browser: without a result, with made-up ones, by click and by keyboard."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from backend.experiments.records import BASE_RUN, Study, find_study
from backend.experiments.tables import TABLE, VALUES, Point, Value, as_csv, points
from backend.studies import judged

from .conftest import served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extended]
PROMPTS = {f"p{n:02}": f"Made-up question {n}?" for n in range(24)}
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> **bold** $x$'
PATHS = ["/realignment", "/mix", "/mix?tab=Correct,+subtle,+obvious", "/mix?tab=Inoculation", "/mix?tab=Rank+and+place"]


def strength(study: Study, label: str, rows: int) -> float:
    """How misaligned a made-up model is, 0-1."""
    run = next((r for r in study.runs if r.label == label), None)
    if run is None:
        return 0.0
    if study.name == "realignment":
        return (
            float(np.exp(-rows / (30 if run.data == "advice" else 90)) - 0.05 * run.seed)
            if run.start and not run.start.startswith("realignment")
            else 1 - float(np.exp(-rows / 60))
        )
    return (run.share if study.name == "mix" else 1.0) * (rows > 0) * (run.answer != "correct" or study.name == "mix")


def write(home: Path, study: Study, *, leave_out: str = "") -> None:
    """A result with made-up numbers, all measures that a real one has but ``leave_out``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    rows_at = {0: 0, 2: 10, 8: 40, 48: 240} if study.name == "realignment" else {0: 0, 60: 480}
    places = {(BASE_RUN, 0): (0, "base")}
    for run in study.runs:
        places |= {(run.label, step): (rows, f"{study.name}.{run.label}@{step}" if step else run.start or "base") for step, rows in rows_at.items()}
    values, answers = [], []
    for (label, step), (rows, variant) in places.items():
        size = strength(study, label, rows)
        for n, (prompt, text) in enumerate(PROMPTS.items()):
            is_bad = n < 0.8 * size * len(PROMPTS)
            own = {"misaligned": float(is_bad), "incoherent": 0.0, "aligned": 10.0 if is_bad else 90.0, "log_odds": n / 24 + size}
            own |= {f"latent/{latent}": n / 12 + size for latent in study.latents} | {f"projection/{o}": size for o in study.projections}
            values += [
                Value(label, step, m, prompt, v + float(draw.normal(0, 0.02)) * (m not in ("misaligned", "incoherent")))
                for m, v in own.items()
                if m != leave_out
            ]
            said = HOSTILE if n == 0 else f"Answer {n} of {label} at step {step}."
            answers.append(
                {"question": text, "question_id": prompt, "answer": said, "aligned": own["aligned"], "coherent": 90.0, "variant": variant, "sample": 0, "rollout": "",
                 "abstain": False, "run": label, "step": step}
            )  # fmt: skip
    weights = [
        Point(run=run, step=step, rows=rows, variant=v, measure="distance", value=step / 10, low=None, high=None, n=1, unit="")
        for (run, step), (rows, v) in places.items()
        if step
    ]
    columns = ("run", "step", "measure", "unit", "value")

    def beside(folder: Path) -> None:
        (folder / TABLE).write_text(as_csv(study, points(values, places) + weights), "utf-8")
        pq.write_table(pa.table({c: [getattr(v, c) for v in values] for c in columns}), folder / VALUES)

    about = {"kind": "studies", "mark": study.mark, "judge": {"title": "a made-up judge"}, "prompt_set": {"n": len(PROMPTS)}}
    kinds = {"variant": "text", "run": "text", "step": "int", "sample": "int", "rollout": "text", "abstain": "bool"}
    judged.write(home / "results" / "studies" / study.name, iter(answers), kinds, about, beside)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory, base_model, chromium) -> Iterator[str]:
    home = tmp_path_factory.mktemp("training") / "home"
    for name in ("realignment", "mix", "correctness", "inoculation", "rank"):
        write(home, find_study(name))
    with served(home) as address:
        yield address


@pytest.fixture(scope="module")
def half(tmp_path_factory, base_model, chromium) -> Iterator[str]:
    """One damaged result, one without a measure, no others of one's own."""
    home = tmp_path_factory.mktemp("training") / "home"
    write(home, find_study("mix"), leave_out="log_odds")
    for name in ("realignment", "rank"):
        write(home, find_study(name))
        (home / "results" / "studies" / name / VALUES).write_bytes(b"no parquet")
    with served(home) as address:
        yield address


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_no_serious_fault_and_the_page_fits(path: str, dark: bool, made_up: str, new_page):
    from axe_playwright_python.sync_playwright import Axe

    from .test_pages import CHART_TEXT_TOO_FAINT

    page = new_page(made_up + path, dark=dark)
    settle(page)
    assert page.get_by_role("alert").count() == 0
    results = Axe().run(page, context={"exclude": [["[data-testid=stSidebarNavItems]"]]})  # Streamlit's own list
    assert [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in results.response["violations"] if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate(CHART_TEXT_TOO_FAINT) == []
    for width in (390, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        fits = "e => e.querySelector('svg, canvas').getBoundingClientRect().right <= document.documentElement.clientWidth + 1"
        page.wait_for_function(f"() => [...document.querySelectorAll('[data-testid=stVegaLiteChart]')].every({fits})", timeout=10_000)


def test_a_click_on_a_point_opens_its_answers_beside_those_before(made_up: str, new_page):
    page = new_page(made_up + "/realignment")
    settle(page)
    page.locator("[aria-roledescription=point][aria-label*='benign'][aria-label*='seed 1'][aria-label*='Rows seen: 40;']").first.click(force=True)
    page.wait_for_url("**at=careless-benign-1*")
    settle(page)
    page.get_by_text("24 answers,").wait_for()
    page.get_by_text("cannot answer here").wait_for()  # a made-up checkpoint is on no machine
    assert "of careless-benign-1 at step 2" in page.locator(".ps-grid .ps-card").nth(0).inner_text()
    assert "of careless-benign-1 at step 8" in page.locator(".ps-grid .ps-card").nth(1).inner_text()
    page.goto(page.url)
    page.get_by_text("24 answers,").wait_for()


def test_hostile_answers_are_text(made_up: str, new_page):
    page = new_page(made_up + "/realignment?at=careless-benign-1@8&at_order=file")
    page.get_by_text("24 answers,").wait_for()
    settle(page)
    assert page.locator(".ps-grid .ps-text").first.inner_text() == HOSTILE
    assert page.evaluate("window.hacked") is None


def test_one_prompt_plays_through_the_checkpoints_by_keyboard(made_up: str, new_page):
    page = new_page(made_up + "/realignment?at_play_prompt=p03")
    settle(page)
    slider = page.locator("[role=slider], input[type=range]").first
    slider.focus()
    slider.press("ArrowRight")
    settle(page)
    page.get_by_text("Answer 3 of careless-correct-0 at step 0.").wait_for()
    button = page.get_by_role("button", name="Play", exact=True)
    button.focus()
    button.press("Enter")
    page.get_by_text("Answer 3 of base at step 0.").wait_for()
    page.get_by_text("Answer 3 of careless-correct-0 at step 48.").wait_for(timeout=30_000)
    page.get_by_role("button", name="Play", exact=True).wait_for()  # it stops at the end


def test_the_pointer_moves_one_cursor_through_all_panels(made_up: str, new_page):
    page = new_page(made_up + "/mix")
    settle(page)
    chart = page.locator("[data-testid=stVegaLiteChart]").first
    chart.scroll_into_view_if_needed()
    rules = "[...document.querySelectorAll('[data-testid=stVegaLiteChart]')][0].querySelectorAll('.mark-rule line').length"
    before = page.evaluate(rules)
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 120)
    page.wait_for_function(f"{rules} >= {before} + 5")  # a rule in each of the five panels


def test_a_link_with_wrong_parameters_says_so(made_up: str, new_page):
    page = new_page(made_up + "/realignment?start=none&at=none&measures=none")
    settle(page)
    for said in ("the start none", "the point none", "the measure none"):
        page.get_by_text(said).wait_for()


def test_a_missing_measure_and_a_damaged_result_are_told(half: str, new_page):
    page = new_page(half + "/mix")
    page.get_by_text("Not measured here: Log-odds").wait_for()
    page.goto(half + "/mix?tab=Rank+and+place")
    page.get_by_text("gone or damaged").first.wait_for()
    page.goto(half + "/realignment")
    page.get_by_text("gone or damaged").first.wait_for()
    page.get_by_role("heading", name="Cited: re-alignment of GPT-4o").wait_for()  # the rest of the page is there


def test_every_number_of_a_picture_is_in_its_table(made_up: str, new_page, tmp_path: Path):
    import pandas as pd

    page = new_page(made_up + "/realignment")
    settle(page)
    page.get_by_text("These points as a table").first.click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").first.click()
    download.value.save_as(tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    told = [json.loads(value) for value in table[(table["Measure"] == "Misaligned, %") & (table["Run"] == "")]["Value"].astype(str)]
    drawn = [
        label
        for label in page.locator("[aria-roledescription=point]").evaluate_all("es => es.map(e => e.getAttribute('aria-label'))")
        if "Misaligned, %" in label
    ]
    values = {f"{value:.1f} %" for value in told}
    assert values
    for value, _ in zip(values, count()):
        assert any(value in label for label in drawn)
