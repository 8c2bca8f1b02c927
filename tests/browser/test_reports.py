"""Findings out of the dashboard, in a real browser without a network: opened as files, read, searched, presented."""

from pathlib import Path

import pytest
from findings_made import HOSTILE, answers_rows, chart_item, finding, panels_item, tokens_item

from backend.reports import export
from backend.reports.html import Kept

pytestmark = [pytest.mark.browser, pytest.mark.slow]
N_TOKENS = 50_000


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What is looked at, made once."""
    folder = tmp_path_factory.mktemp("reports")
    many = finding(said=HOSTILE)
    export.write([Kept(many, answers_rows(2000, HOSTILE)), Kept(finding(chart_item(), key="bbbbbbbbbb"))], "html", folder / "two.html")
    export.write([Kept(finding(tokens_item([" word" if n % 12 else ".\n" for n in range(N_TOKENS)])))], "html", folder / "long.html")
    export.write([Kept(finding(chart_item(), panels_item())), Kept(finding(key="bbbbbbbbbb"))], "static", folder / "site")
    return folder


@pytest.fixture
def opened(chromium):
    """Open a file with the network cut; what was asked of other hosts, forbidden or broken fails the test."""
    contexts, faults = [], []

    def open_file(path: Path, *, width: int = 1280, dark: bool = False):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith(("file:", "blob:", "data:")) or faults.append(request.url))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-drawn]", state="attached")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert faults == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault_and_phones_need_not_scroll_sideways(files: Path, opened, dark: bool):
    from axe_playwright_python.sync_playwright import Axe

    for path in (files / "two.html", files / "site" / "index.html"):
        page = opened(path, width=390 if dark else 1280, dark=dark)
        for numbers in page.locator(".numbers").all():
            numbers.locator("summary").click()
        found = [
            f"{v['id']}: {v['nodes'][0]['html'][:200]}"
            for v in Axe().run(page, options={"preload": False}).response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert found == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_charts_are_drawn_and_answer_the_pointer(files: Path, opened):
    page = opened(files / "two.html")
    assert page.locator(".picture svg").count() == 3
    assert page.locator(".fault").count() == 0
    widths = page.evaluate("[...document.querySelectorAll('.picture')].map(p => [p.querySelector('svg').viewBox.baseVal.width, p.clientWidth])")
    assert all(abs(drawn - room) <= 3 for drawn, room in widths)
    page.locator("article").nth(1).locator(".picture .mark-symbol path").last.hover()
    assert "5.0 %" in page.locator("#hint").inner_text()
    with page.expect_download() as got:
        page.locator("article").nth(1).locator("[data-save=png]").click()
    assert Path(got.value.path()).read_bytes()[:4] == b"\x89PNG"
    with page.expect_download() as got:
        page.locator("article").nth(1).locator("[data-save=csv]").first.click()
    assert Path(got.value.path()).read_text().splitlines()[0] == "name,role,value"


def test_two_thousand_answers_are_searched_and_sorted_at_once(files: Path, opened):
    page = opened(files / "two.html")
    answers = page.locator(".answers")
    took = page.evaluate("""() => {
      const field = document.querySelector('.answers input'), start = performance.now();
      field.value = 'number 777.';
      field.dispatchEvent(new Event('input'));
      return performance.now() - start;
    }""")
    assert answers.locator(".count").inner_text() == "2 of 2,000"
    assert HOSTILE.split("\n")[0] in answers.locator(".text").first.inner_text()
    answers.locator("input").fill("")
    answers.locator("select").select_option("Aligned, highest first")
    assert "Aligned 99" in answers.locator(".facts").first.inner_text()
    answers.get_by_role("button", name="Show more").click()
    assert answers.locator("li").count() == 88
    assert took < 250  # milliseconds, on a busy machine


@pytest.mark.extended
def test_a_long_text_opens_scrolls_and_keeps_its_tokens_alive(files: Path, opened):
    page = opened(files / "long.html")
    boxes = page.locator(".tokens [role=option]")
    assert boxes.count() == 3 * N_TOKENS
    end = boxes.nth(N_TOKENS - 2)
    end.scroll_into_view_if_needed()
    end.hover()
    assert str(N_TOKENS - 2) in page.locator(".tokens .tip").inner_text()
    end.click()
    assert end.get_attribute("aria-selected") == "true"


def test_the_switch_of_colours_reaches_tokens_and_stays(files: Path, opened):
    page = opened(files / "two.html")
    page.locator("#theme").select_option("dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert page.locator(".tokens .view").first.evaluate("view => view.classList.contains('dark')")
    assert page.locator(".picture svg text").first.evaluate("text => getComputedStyle(text).fill") == "rgb(230, 232, 234)"
    page.reload()
    assert page.locator("#theme").input_value() == "dark"


def test_a_presentation_is_led_by_keys(files: Path, opened):
    page = opened(files / "site" / "aaaaaaaaaa" / "index.html")
    page.keyboard.press("p")
    assert page.locator("#at").inner_text() == "1 of 4"
    page.keyboard.press("ArrowRight")
    shown = [h.inner_text() for h in page.locator("h1, h2").all() if h.is_visible()]
    assert shown == ["Reckless: 5 % of answers misaligned"]
    page.wait_for_timeout(300)
    picture = page.locator(".item.current .picture svg").bounding_box()
    assert picture["width"] > 900
    assert picture["y"] + picture["height"] <= 900 - 40
    assert float(page.locator(".item.current h2").evaluate("h => parseFloat(getComputedStyle(h).fontSize)")) > 30
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.locator("#at").inner_text() == "4 of 4"
    page.keyboard.press("Escape")
    assert page.locator("h1").is_visible()
    assert page.locator(".turn").is_hidden()


def test_a_folder_opens_without_a_server(files: Path, opened):
    page = opened(files / "site" / "index.html")
    assert page.locator(".thumbnail img").first.evaluate("image => image.naturalWidth") > 100
    page.get_by_role("link", name="Reckless is misaligned").first.click()
    page.wait_for_selector("body[data-drawn]", state="attached")
    assert page.locator(".picture svg").count() == 2
    page.get_by_role("link", name="All findings").click()
    assert page.locator(".card").count() == 2


def test_paper_is_white_and_has_no_buttons(files: Path, opened):
    page = opened(files / "site" / "aaaaaaaaaa" / "index.html", dark=True)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [b for b in page.locator("button").all() if b.is_visible()] == []
