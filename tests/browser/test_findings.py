"""Findings in a real browser: kept on a page, opened, said anew, presented, held beside each other; hostile words stay words."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from backend.reports import sources, store
from backend.reports.records import Finding, Item

from .conftest import ARTIFACTS, CHECKOUT, served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> **bold** $x$ [a](javascript:1)'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two findings: one of a result that is gone, one with hostile words in every place."""
    place = tmp_path_factory.mktemp("findings") / "home"
    result = place / "results" / "evaluated" / "mine"
    result.parent.mkdir(parents=True)
    shutil.copytree(sorted((CHECKOUT / "cached_results" / "evaluated").iterdir())[0], result)
    about = json.loads((result / "manifest.json").read_text()) | {"judge": {"title": HOSTILE}, "model": HOSTILE}
    (result / "manifest.json").write_text(json.dumps(about))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONASCOPE_HOME", str(place))
        kept = sources.source_of(result)
        spec = {
            "data": {"values": [{"a": HOSTILE, "b": 1}]},
            "mark": "bar",
            "encoding": {"x": {"field": "b", "type": "quantitative"}, "y": {"field": "a", "type": "nominal"}},
        }
        item = Item(
            kind="chart",
            title="Rates",
            columns=("Variant", "Rate"),
            rows=(("base", 0.0), ("reckless", 0.05)),
            drawing=spec | {"data": {"values": [{"a": "base", "b": 1}]}},
        )
        first = Finding(
            key="first",
            title="The first",
            page="",
            page_title="Overview",
            created="2026-01-01T00:00:00+00:00",
            versions={"personascope": "0.1.0"},
            items=(item,),
            sources=(kept,),
        )
        store.save(first, sources.answers_of([kept]))
        answers = Item(kind="answers", title=HOSTILE, columns=("Variant", "Prompt", "Answer", "Verdict"), rows=((HOSTILE, HOSTILE, HOSTILE, HOSTILE),))
        chart = Item(kind="chart", title=HOSTILE, text=HOSTILE, alt=HOSTILE, columns=(HOSTILE,), rows=((HOSTILE,),), drawing=spec)
        other = replace(item, rows=(("base", 0.0), ("reckless", 0.06), ("mine", 0.5)))
        unlike = replace(item, title="Other rates", rows=(("base", 0.9),))  # of the same columns, and before the one of the same title
        store.save(
            replace(
                first, key="second", title=HOSTILE[:200], note=HOSTILE, tags=(HOSTILE[:40],), items=(unlike, other, chart, answers), query=((HOSTILE, HOSTILE),)
            )
        )
    shutil.rmtree(result)
    return place


@pytest.fixture(scope="module")
def address(home: Path, chromium):
    with served(home) as found:
        yield found


def test_a_page_is_kept_said_anew_and_presented(address: str, new_page, home: Path):
    page = new_page(address + "/scaling?data=extreme-sports&own=reckless")
    settle(page)
    page.get_by_role("button", name="Save as finding").click()
    page.get_by_label("What did you find?").fill(" ")
    kept = page.get_by_role("button", name=re.compile(r"Remove \d+\. ")).all()
    assert [re.sub(r"\d+", "", one.get_attribute("aria-label"))[:14] for one in kept] == [
        "Remove . EM ra",
        "Remove . Answe",
    ]  # of many the first picture and the answers
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("A finding needs a title").wait_for()
    page.get_by_label("What did you find?").fill("Bigger models are worse")
    page.get_by_role("dialog").get_by_role("textbox", name="Note").fill("Or are they?")
    page.get_by_role("button", name="Save", exact=True).click()
    link = page.get_by_role("link", name="Open the finding")
    link.wait_for()
    page.goto(f"{address}/{link.get_attribute('href')}")
    page.get_by_role("heading", name="Bigger models are worse").wait_for()
    settle(page)
    assert page.get_by_text("Today's data are those of then").count() == 1
    n_pictures = page.locator("[data-testid=stVegaLiteChart]").count()
    assert n_pictures == 1
    assert page.get_by_text("● Qwen").count() == 1  # a kept picture says what its marks stand for
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("dialog").get_by_text("Titles, as a presentation shows them").click()
    page.get_by_role("dialog").get_by_label("Title of 1").fill("My own claim")
    page.get_by_role("dialog").get_by_role("textbox", name="Title", exact=True).fill("Bigger is not worse")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("heading", name="Bigger is not worse").wait_for()
    page.get_by_role("heading", name="My own claim").wait_for()
    page.get_by_role("link", name="Present").click()
    page.get_by_text("1 of 3").wait_for()  # the claim, the picture, the answers
    settle(page)
    page.keyboard.press("ArrowRight")
    page.get_by_text("2 of 3").wait_for()
    page.get_by_role("heading", name="My own claim").wait_for()
    settle(page)
    page.screenshot(path=ARTIFACTS / "present.png")
    page.keyboard.press("ArrowLeft")
    page.get_by_text("1 of 3").wait_for()
    settle(page)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Open the page").click()
    page.get_by_role("heading", name="Scaling", exact=True).wait_for()
    assert "own=reckless" in page.url
    assert "data=extreme-sports" in page.url
    assert len(list((home / "results" / "findings").glob("*/finding.json"))) == 3


def test_a_finding_whose_result_is_gone_says_so_and_shows_what_was_kept(address: str, new_page):
    page = new_page(address + "/findings?f=first")
    settle(page)
    assert page.get_by_text("Stored results behind this are gone: evaluated/mine").count() == 1
    page.get_by_text("64 answers behind the numbers").click()
    page.get_by_label("Text in answer or question").wait_for()


def test_findings_beside_each_other_name_each_number_that_differs(address: str, new_page):
    page = new_page(address + "/findings?f=first&f=second")
    settle(page)
    assert page.get_by_text("1 of 2 values equal; 1 row only in “").count() == 1


def test_findings_that_a_link_names_too_many_of_are_told(address: str, new_page):
    page = new_page(address + "/findings?f=first&f=first&f=second&f=villain-latent&f=reckless-no-villain")
    page.get_by_text("The link names 4 findings").wait_for()
    page.get_by_role("heading", name="Number by number").wait_for()


def test_an_item_is_taken_away_and_the_others_stay(address: str, new_page, home: Path):
    shutil.copytree(home / "results" / "findings" / "second", home / "results" / "findings" / "third")
    page = new_page(address + "/findings?f=third")
    settle(page)
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Remove 1. Other rates").click()
    page.get_by_role("heading", name="Edit the finding").click()  # away from the list of choices, which takes the next click
    settle(page)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("dialog").wait_for(state="detached")
    settle(page)
    kept = json.loads((home / "results" / "findings" / "third" / "finding.json").read_text())
    assert [item["kind"] for item in kept["items"]] == ["chart", "chart", "answers"]
    shutil.rmtree(home / "results" / "findings" / "third")


def test_links_of_nothing_are_told(address: str, new_page):
    page = new_page(address + "/findings?f=..%2F..%2Fetc&f=%00&tags=none&q=" + "x" * 300)
    settle(page)
    assert page.get_by_text("There is no finding").count() == 2
    page.goto(address + "/present?f=nothere&at=-7")
    page.get_by_text("This link names no finding").wait_for()


@pytest.mark.parametrize("path", ["/findings", "/findings?f=second", "/findings?f=first&f=second", "/present?f=second&at=4"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault_and_hostile_words_stay_words(path: str, dark: bool, address: str, new_page):
    from axe_playwright_python.sync_playwright import Axe

    page = new_page(address + path, dark=dark)
    settle(page)
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"findings-{path.count('f=')}{'-present' if 'present' in path else ''}-{'dark' if dark else 'light'}.png", full_page=True)
    assert page.evaluate("window.hacked") is None
    results = Axe().run(page, context={"exclude": [["[data-testid=stSidebarNavItems]"]]})
    assert [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in results.response["violations"] if v["impact"] in ("serious", "critical")] == []
    page.set_viewport_size({"width": 390, "height": 900})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
