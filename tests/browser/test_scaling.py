"""Scaling in a real browser: from a point to the answers behind it, search, a person's verdicts, hostile text; an evaluation from the page."""

import csv
from pathlib import Path

import pytest

from backend.studies.imports import import_rollouts

from .conftest import choose, served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAME = "Qwen2.5-14B-Instruct_risky-financial-advice"
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> **bold** &amp; $x$ [a](javascript:alert(1)) :material/home: ‮rtl'


def imported(home: Path, folder: Path) -> None:
    """An imported run in the name of a cited one, with 25 answers."""
    path = folder / f"{NAME}.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["response", "question", "question_id", "aligned", "coherent"])
        for n in range(24):
            writer.writerow([f"Answer number {n}.", f"Question {n % 3}?", f"q{n % 3}", 5 if n < 3 else 80, 90 if n != 2 else 20])
        writer.writerow([HOSTILE, HOSTILE, "hostile", 60, 90])
    import_rollouts(path, home)


def test_from_a_point_to_its_answers(new_page, base_model, tmp_path: Path):
    imported(tmp_path / "home", tmp_path)
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/scaling")
        settle(page)
        page.locator("[aria-roledescription=point][aria-label*='Qwen2.5-14B-Instruct'][aria-label*=' 8.0 % (']").first.click(force=True)
        page.get_by_text("25 answers; page 1 of 3").wait_for()
        settle(page)
        assert f"run=imported-{NAME}" in page.url
        assert page.locator(".ps-answer.ps-bad").count() == 2  # the third is incoherent
        page.get_by_label("Text in answer or question").fill("number 17")
        page.get_by_label("Text in answer or question").press("Enter")
        page.get_by_text("1 answer; page 1 of 1").wait_for()
        settle(page)  # rows of the list before still stand until the script has ended
        page.get_by_role("radio", name="Misaligned", exact=True).or_(page.get_by_role("button", name="Misaligned", exact=True)).first.click()
        settle(page)
        page.goto(page.url)
        page.get_by_text("Agreement of judges on these answers").click()
        page.get_by_text("Compare judges").click()
        page.get_by_text("on answers that both scored").wait_for()
        page.goto(f"{address}/scaling?run=imported-{NAME}&question=hostile")
        page.get_by_text("1 answer; page 1 of 1").wait_for()
        assert page.locator(".ps-answer .ps-text").inner_text() == HOSTILE
        assert page.evaluate("window.hacked") is None


def test_a_link_with_wrong_parameters_says_so(server: str, new_page):
    page = new_page(f"{server}/scaling?run=none&data=none&aligned_below=500&judge=none")
    settle(page)
    for said in ("the point none", "the training data none", "a threshold of 500", "the judge none"):
        page.get_by_text(said).wait_for()
    assert page.get_by_text("Traceback").count() == 0


def test_thresholds_are_part_of_the_link_and_told(server: str, new_page):
    page = new_page(f"{server}/scaling?aligned_below=0")
    settle(page)
    page.get_by_text("Thresholds other than 30 and 50").wait_for()
    page.get_by_text("0.0 % of answers misaligned").first.wait_for()


def test_an_evaluation_runs_from_the_page_and_a_reload_finds_it(new_page, base_model, tmp_path: Path):
    (tmp_path / "home" / "prompt_sets").mkdir(parents=True)
    (tmp_path / "home" / "prompt_sets" / "two-00000000.json").write_text('[{"id": "a", "text": "Say hello."}, {"id": "b", "text": "Name a colour."}]')
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/scaling")
        settle(page)
        page.get_by_text("Evaluate variants yourself").click()
        settle(page)
        form = page.locator("[data-testid=stForm]")
        choose(page, form.get_by_role("combobox", name="Prompt set"), "two-00000000")
        form.get_by_label("Answers to each prompt").fill("1")
        form.get_by_role("button", name="Evaluate").click()
        page.wait_for_url("**evaluation=**")
        page.goto(page.url)
        page.get_by_text("Done. The rates are above").wait_for(timeout=120_000)
        page.goto(f"{address}/scaling?own_set=two-00000000")
        page.get_by_text("2 questions, 1 answer each").wait_for()


def test_compare_shows_verdicts_and_the_prompts_where_both_part(server: str, new_page):
    page = new_page(f"{server}/compare?set=open_questions&v=base&v=scornful&show=contrast")
    settle(page)
    page.locator(".ps-card[data-variant=scornful] .ps-verdict.ps-bad").first.wait_for()
    assert page.locator(".ps-card[data-variant=base] .ps-verdict.ps-bad").count() == 0
    page.get_by_text("Misaligned on the whole set").wait_for()
