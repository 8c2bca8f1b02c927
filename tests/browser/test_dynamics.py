"""Dynamics in a real browser: one cursor over all panels, from a step to its answers beside the step before, imported summaries, the empty state."""

import re
from pathlib import Path

import pytest
from test_transitions import BEHAVIOUR_TURNS, a_study, plant

from backend.experiments.records import find_study
from backend.studies.imports import import_steps

from .conftest import choose, served, settle
from .test_pages import CHART_TEXT_TOO_FAINT

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extended]
PANELS = "[data-testid=stVegaLiteChart] svg:has-text('Incoherent, %')"

CHARTS_FIT = """() => [...document.querySelectorAll('[data-testid=stVegaLiteChart]')].every(chart => {
  const svg = chart.querySelector('svg');
  return svg && svg.getBoundingClientRect().right <= chart.getBoundingClientRect().right + 1;
})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory, base_model, chromium):
    folder = tmp_path_factory.mktemp("dynamics")
    result = plant(folder / "home", a_study("dynamics"))
    manifest = result / "manifest.json"
    manifest.write_text(manifest.read_text().replace(a_study("dynamics").mark, find_study("dynamics").mark))
    summary = folder / "someone's run.csv"
    summary.write_text("step,percent_em,percent_coherent,n_responses\n0,0,99,100\n50,12,98,100\n100,31,97,100\n")
    import_steps(summary, folder / "home")
    with served(folder / "home") as found:
        yield found


def test_a_click_on_a_step_moves_the_cursor_in_all_panels_and_opens_its_answers(address: str, new_page):
    page = new_page(f"{address}/dynamics?course=rank1", height=1800)
    settle(page)
    page.get_by_text("Earlier than that, of").wait_for()
    panels = page.locator(PANELS).first
    box = panels.bounding_box()
    x = box["x"] + 0.62 * box["width"]
    page.mouse.move(x, box["y"] + 80)
    page.locator("#vg-tooltip-element").get_by_text("Forced choice").wait_for()  # the cursor says all signals
    page.mouse.click(x, box["y"] + 80)
    page.get_by_text("at this point").first.wait_for()
    settle(page)
    assert page.locator(PANELS).first.locator("line[stroke-dasharray='6,3']").count() == 8  # the chosen step, in each panel
    step = int(re.search(r"moment=rank1(?:@|%40)(\d+)", page.url)[1])
    assert abs(step - BEHAVIOUR_TURNS) <= 60
    assert page.get_by_text(f"with another verdict than at step {step - 20}").count() == 1
    cards = page.locator(".ps-card")
    assert f"rank1 at {step - 20} says" in cards.nth(0).inner_text()
    assert f"rank1 at {step} says" in cards.nth(1).inner_text()
    again = new_page(page.url, height=1800)
    settle(again)
    again.get_by_text(f"with another verdict than at step {step - 20}").wait_for()


def test_a_step_chosen_from_the_list_and_the_scaled_run_have_answers_too(address: str, new_page):
    page = new_page(f"{address}/dynamics?course=rank1")
    settle(page)
    choose(page, page.get_by_role("combobox", name="Answers at"), "rank1, adapter × 3, step 100")
    page.get_by_text("with another verdict than at step 80").wait_for()
    assert "rank1-scaled at 100 says" in page.locator(".ps-card").nth(1).inner_text()


def test_the_disputed_claim_the_cited_curve_and_an_imported_one_are_told(address: str, new_page):
    page = new_page(f"{address}/dynamics")
    settle(page)
    for said in ("arXiv:2506.11613", "arXiv:2607.09053", "annasoligo/EM_interp@b2448506", "In run rank1", "at most 31 % misaligned, at step 100"):
        page.get_by_text(said).first.wait_for()


def test_a_link_with_wrong_parameters_says_so(address: str, new_page):
    page = new_page(f"{address}/dynamics?course=none&moment=rank1@7&imported=none&followed=99")
    settle(page)
    for said in ("the run none", "the point rank1@7", "the imported run none"):
        page.get_by_text(said).wait_for()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_legible_and_fits_with_a_result(dark: bool, address: str, new_page):
    from axe_playwright_python.sync_playwright import Axe

    page = new_page(f"{address}/dynamics?course=rank1&moment=rank1@100", dark=dark)
    settle(page)
    results = Axe().run(page, context={"exclude": [["[data-testid=stSidebarNavItems]"]]})
    assert [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in results.response["violations"] if v["impact"] in ("serious", "critical")] == []
    assert page.evaluate(CHART_TEXT_TOO_FAINT) == []
    for width in (390, 768, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.wait_for_function(CHARTS_FIT, timeout=20_000)


def test_without_a_result_the_page_says_what_makes_one(new_page, base_model, tmp_path: Path):
    with served(tmp_path / "home") as fresh:
        page = new_page(f"{fresh}/dynamics")
        settle(page)
        page.get_by_text("python -m backend import steps SUMMARY.csv").wait_for()
        shipped = page.locator(PANELS).count()
        assert shipped or page.get_by_text("python -m backend study run dynamics").count()
