"""The token view in a real browser: text to the byte, one scale, keyboard and mouse, contrast, size; pictures go to test-artifacts/."""

import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise

import pytest
from conftest import CHECKOUT

from backend.errors import InputError
from backend.text.spans import Token, text_of
from pages.shared import token_view

from .conftest import ARTIFACTS, settle
from .token_view_app import CHAT, HOSTILE, TORTURE, text_of_case, tokens_of

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extended]
TEXTS = """lists => lists.map(list => [...list.querySelectorAll('[role=option]:not([data-role=special])')].map(box => box.textContent).join(''))"""
N_VALUES = """lists => lists.map(list => [...list.querySelectorAll('[role=option]')].reduce((n, box) => n + box.ariaLabel.split(', ').at(-1).split(' and ').length, 0))"""
LEAST_CONTRAST = """view => {
  const parts = colour => {
    const [r, g, b, a = 1] = colour.replace('color(srgb', '').match(/[\\d.e-]+/g).map(Number);
    return colour.startsWith('color(srgb') ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = parts(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor);
  const contrast = element => {
    const style = getComputedStyle(element), fill = parts(style.backgroundColor);
    const drawn = ground.slice(0, 3).map((v, i) => fill[i] * fill[3] + v * (1 - fill[3]));
    const [low, high] = [light(drawn), light(parts(style.color))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const role of ['content', 'special', 'template']) {
    const box = view.querySelector(`[data-role=${role}]`);
    for (const fill of ['', 'rise', 'fall']) for (let part = 0; part <= 1; part += 0.01) {
      box.classList.remove('rise', 'fall');
      if (fill) box.classList.add(fill);
      box.style.setProperty('--part', part);
      found.push(contrast(box));
    }
  }
  for (const element of view.querySelectorAll('.legend span, .title, .tip div, .tip th, .tip td')) found.push(contrast(element));
  return Math.min(...found);
}"""


@pytest.fixture(scope="module")
def view_server(tmp_path_factory, base_model, chromium) -> Iterator[str]:
    """The token view alone, on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("view") / "server.log"
    command = [sys.executable, "-m", "streamlit", "run", "tests/browser/token_view_app.py", "--server.port", str(port)]
    process = subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, stdout=log.open("w"), stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "Traceback" not in log.read_text(), log.read_text()[-4000:]


@pytest.fixture
def open_view(view_server: str, new_page):
    """Open the view on a case and wait until it is drawn."""

    def open_case(case: str, *, more: str = "", **kwargs):
        page = new_page(f"{view_server}/?case={case}{more}", **kwargs)
        page.locator(".panels > *:visible").first.wait_for()
        settle(page)
        return page

    return open_case


def boxes(page, panel: int = 0):
    return page.get_by_role("listbox").nth(panel).get_by_role("option")


def focused(page) -> tuple[int, int]:
    """Panel and box with keyboard focus."""
    place = page.locator(".view").evaluate("view => { const at = view.getRootNode().activeElement; return at && [at.panel, at.place]; }")
    assert place is not None, "no box has the focus"
    return tuple(place)


def place_of_box(tokens: list[Token], box: int) -> int:
    """Place of a box's first token, worked out apart from the code under test."""
    firsts = [n for n, t in enumerate(tokens) if t.role == "special" or n == 0 or (t.start, t.end) != (tokens[n - 1].start, tokens[n - 1].end)]
    return firsts[box]


@pytest.mark.parametrize("case", ["torture", "chat", *map(str, range(len(TORTURE)))])
def test_the_drawn_text_is_the_text_to_the_byte(case: str, open_view):
    page = open_view(case)
    tokens = tokens_of(case)
    lists = page.get_by_role("listbox")
    assert lists.evaluate_all(TEXTS) == [text_of(tokens) if case == "chat" else text_of_case(case)] * 3
    assert lists.evaluate_all(N_VALUES) == [len(tokens)] * 3
    assert page.locator(".view").evaluate("view => view.querySelectorAll('script, img').length") == 0


def test_text_never_becomes_html(open_view):
    page = open_view("hostile")
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for n, text in enumerate(HOSTILE):
        boxes(page).nth(n).hover()
        assert boxes(page).nth(n).evaluate("box => box.textContent") == text
        assert text.strip() in page.get_by_role("tooltip").inner_text()
    assert page.locator(".legend .name").inner_text() == HOSTILE[0]
    assert page.locator(".view").evaluate("view => view.querySelectorAll('script, img, b').length") == 0
    page.wait_for_timeout(200)
    assert dialogs == []


def test_a_text_without_tokens_says_so(open_view):
    page = open_view("empty")
    page.get_by_text("There are no tokens to show.").wait_for()
    assert page.get_by_role("option").count() == 0


def test_every_token_can_be_seen_and_pointed_at(open_view):
    page = open_view("torture")
    sizes = boxes(page).evaluate_all(
        "boxes => boxes.filter(b => !/^\\p{M}+$/u.test(b.textContent)).map(b => [b.textContent, b.getClientRects()[0].width, b.getClientRects()[0].height])"
    )
    assert [size for size in sizes if size[1] < 1 or size[2] < 10] == []


def test_special_tokens_do_not_set_the_scale(open_view):
    page = open_view("chat")
    content = [n for n, token in enumerate(tokens_of("chat")) if token.role == "content"]
    legend = page.locator(".legend")
    before = legend.inner_text()
    assert "1,000" not in before
    note = page.locator(".note")
    assert "special and template tokens are left out" in note.inner_text()
    assert page.locator("[data-role=special].rise, [data-role=template].rise").count() == 0
    full = boxes(page).and_(page.locator(".rise")).evaluate_all("boxes => Math.max(...boxes.map(b => Number(b.style.getPropertyValue('--part'))))")
    assert 0.5 < full <= 1
    page.get_by_text("Special tokens too").click()
    legend.get_by_text("1,000").wait_for()
    assert "left out" not in note.inner_text()
    assert page.locator("[data-role=special].rise").count() > 0
    assert len(content) < len(tokens_of("chat"))


@pytest.mark.parametrize("case", ["chat", "0"])
def test_a_click_and_enter_reach_python_and_stay(case: str, open_view):
    page = open_view(case)
    tokens = tokens_of(case)
    page.get_by_text("No token was clicked.").wait_for()
    for panel, box in ((0, 2), (2, 5), (1, 3)):
        place = place_of_box(tokens, box)
        boxes(page, panel).nth(box).click()
        page.get_by_text(f"Clicked {place}: {tokens[place].id}.", exact=True).wait_for()
        assert page.locator("[aria-selected=true]").count() == 3
        assert boxes(page, 1).nth(box).get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    place = place_of_box(tokens, 4)
    told = page.get_by_text(f"Clicked {place}: {tokens[place].id}.", exact=True)
    told.wait_for()
    settle(page)
    page.keyboard.press("Control+Shift+K")
    settle(page)
    assert told.count() == 1
    assert focused(page) == (1, 4)


def test_the_caller_can_move_the_pin(open_view):
    page = open_view("chat")
    boxes(page).nth(5).click()
    page.get_by_text("Clicked 5:").wait_for()
    page.get_by_label("Selected").fill("9")
    page.get_by_label("Selected").press("Enter")
    page.get_by_text("No token was clicked.").wait_for()
    settle(page)
    assert boxes(page).nth(9).get_attribute("aria-selected") == "true"
    assert page.locator("[aria-selected=true]").count() == 3
    page.get_by_label("Selected").fill("5")
    page.get_by_label("Selected").press("Enter")
    settle(page)
    assert page.get_by_text("No token was clicked.").count() == 1  # the first click does not come back
    boxes(page).nth(7).click()
    page.get_by_text("Clicked 7:").wait_for()
    page.get_by_label("Selected").fill("100000")
    page.get_by_label("Selected").press("Enter")
    page.get_by_text("No token was clicked.").wait_for()
    settle(page)
    assert page.locator("[aria-selected=true]").count() == 0


def test_the_keyboard_reaches_every_token(open_view):
    page = open_view("chat")
    last = boxes(page).count() - 1
    assert page.evaluate("document.activeElement === document.body")  # a view that comes takes no focus
    assert page.locator(".view [tabindex]").count() == 1
    page.get_by_text("Special tokens too").click()
    settle(page)
    page.keyboard.press("Tab")
    assert focused(page) == (0, 0)
    tip = page.get_by_role("tooltip")
    assert "<|im_start|>" in tip.inner_text()
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last), ("ArrowRight", last), ("Home", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert focused(page) == (0, place)
    seen = [0]
    while True:
        page.keyboard.press("ArrowDown")
        if focused(page)[1] == seen[-1]:
            break
        seen.append(focused(page)[1])
    assert 10 < len(seen) < last / 2
    tops = [
        boxes(page).nth(n).evaluate("box => box.getBoundingClientRect().top - box.closest('.panels').querySelector('.list').getBoundingClientRect().top")
        for n in seen
    ]
    assert all(b - a > 10 for a, b in pairwise(tops))
    for _ in seen[1:]:
        page.keyboard.press("ArrowUp")
    assert focused(page)[1] in range(3)  # the first line
    assert page.locator(".view [tabindex]").count() == 1
    page.keyboard.press("Escape")
    tip.wait_for(state="hidden")
    page.keyboard.press("Tab")
    assert page.locator(".view").evaluate("view => view.getRootNode().activeElement") is None


def test_pointing_tells_all_panels_and_marks_the_token_in_each(open_view):
    page = open_view("0")
    content = page.locator("[data-role=content]")
    box = content.first.evaluate("box => box.place")
    boxes(page, 1).nth(box).hover()
    tip = page.get_by_role("tooltip")
    tip.wait_for()
    told = tip.inner_text()
    assert "👩" in told
    assert "tokens share it" in told
    place = place_of_box(tokens_of("0"), box)
    for token in tokens_of("0")[place : place + 2]:
        assert str(token.id) in told.split()
    assert str(place) in told.split()
    assert all(title in told for title in ("base", "Reckless", "Reckless \u2212 base"))
    assert page.locator(".pointed").count() == 3
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")
    assert page.locator(".pointed").count() == 0
    page = open_view("4")
    page.locator("[data-role=content]").first.hover()
    assert page.get_by_role("tooltip").inner_text().startswith('"\\t')


def test_a_missing_value_is_told_from_zero(open_view):
    page = open_view("torture")
    assert "stripes: no value" in page.locator(".note").inner_text()
    assert page.locator(".missing").count() == 2  # the organism's and the difference
    boxes(page).last.hover()
    assert page.get_by_role("tooltip").inner_text().count("no value") == 2


def test_percentiles_come_from_the_corpus(open_view):
    page = open_view("chat")
    box = boxes(page).and_(page.locator(".rise")).first
    box.hover()
    value = float(box.get_attribute("aria-label").split(", ")[-1])
    rank = next(part for part in page.get_by_role("tooltip").inner_text().split() if part.startswith("p") and part[1:].replace(".", "").isdigit())
    assert float(rank[1:]) == pytest.approx(min(100, max(0, 8 * value - 1)), abs=0.6)  # quantile q is (q + 1) / 8


def test_what_is_copied_is_the_text(open_view):
    page = open_view("chat")
    page.evaluate("document.addEventListener('copy', event => { window.copied = event.clipboardData.getData('text/plain'); })")
    page.get_by_role("listbox").first.evaluate("list => getSelection().setBaseAndExtent(list, 0, list, list.childNodes.length)")
    page.keyboard.press("Control+C")
    page.wait_for_function("window.copied")
    assert page.evaluate("window.copied") == text_of(tokens_of("chat")).removesuffix("\n")  # Chromium selects up to the last line's end


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_legible_on_every_fill(dark: bool, open_view):
    page = open_view("chat", dark=dark)
    boxes(page).nth(12).hover()
    assert page.locator(".view").evaluate("view => view.classList.contains('dark')") == dark
    assert page.locator(".view").evaluate(LEAST_CONTRAST) >= 4.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("case", ["chat", "torture", "empty"])
def test_axe_finds_no_serious_fault(case: str, dark: bool, open_view):
    from axe_playwright_python.sync_playwright import Axe

    ARTIFACTS.mkdir(exist_ok=True)
    page = open_view(case, dark=dark, width=1600)
    if case == "chat":
        boxes(page).nth(20).click()
        settle(page)
        boxes(page).nth(26).hover()
    page.screenshot(path=ARTIFACTS / f"token-view-{case}-{'dark' if dark else 'light'}.png")
    results = Axe().run(page, context={"exclude": [["[data-testid=stButton]"]]})  # Streamlit's hint of the button's keys is faint
    found = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in results.response["violations"] if v["impact"] in ("serious", "critical")]
    assert found == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("case", ["chat", "torture"])
def test_phones_show_a_panel_at_a_time_with_its_scale(case: str, dark: bool, open_view):
    page = open_view(case, width=390, touch=True, dark=dark)
    page.screenshot(path=ARTIFACTS / f"token-view-{case}-390-{'dark' if dark else 'light'}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator(".panels").evaluate("panels => panels.scrollWidth <= panels.clientWidth")
    shown = page.locator(".panel:visible")
    assert shown.get_by_role("listbox").get_attribute("aria-label").startswith("Reckless \u2212 base")  # what the page is for
    assert page.locator(".scale:visible").count() == 1
    assert page.locator(".scale.signed").is_visible()
    page.get_by_role("button", name="base", exact=True).tap()
    assert shown.get_by_role("listbox").get_attribute("aria-label").startswith("base:")
    assert not page.locator(".scale.signed").is_visible()
    assert shown.locator("[tabindex='0']").count() == 1
    wide = boxes(page).evaluate_all("boxes => boxes.flatMap((box, n) => (box.getClientRects()[0].width > 24 ? [n] : []))")  # as wide as a finger
    for box in wide[:2]:
        boxes(page).nth(box).tap()
        page.get_by_text(f"Clicked {place_of_box(tokens_of(case), box)}:").wait_for()
        settle(page)
        assert page.get_by_role("tooltip").is_visible()


def test_panels_stand_side_by_side_where_there_is_room(open_view):
    page = open_view("chat", width=1100)
    assert len(set(page.locator(".panel").evaluate_all("panels => panels.map(panel => panel.offsetTop)"))) == 1


def test_four_thousand_tokens_in_three_panels(open_view):
    page = open_view("big")
    assert page.get_by_role("listbox").evaluate_all(N_VALUES) == [4000] * 3
    started = time.monotonic()
    boxes(page).nth(3).hover()
    page.get_by_role("tooltip").wait_for()
    boxes(page).nth(3).click()
    page.get_by_text("Clicked 3:").wait_for()
    page.keyboard.press("End")
    assert focused(page) == (0, boxes(page).count() - 1)
    in_sight = "box => box.getBoundingClientRect().bottom <= box.closest('.panels').getBoundingClientRect().bottom"
    page.wait_for_timeout(500)
    assert boxes(page).last.evaluate(in_sight)
    page.get_by_label("Selected").fill("1000")
    page.get_by_label("Selected").press("Enter")
    page.locator("[aria-selected=true]").nth(2).wait_for(state="attached")
    settle(page)
    assert boxes(page).nth(1000).evaluate(in_sight)
    assert time.monotonic() - started < 20  # seconds, with room for a slow machine


def test_scales_are_of_content_and_a_missing_value_is_not_zero():
    tokens = [Token(0, "<s>", 0, 0, "special"), *(Token(n, t, n, n + 1, "content", 0) for n, t in enumerate("abc"))]
    panels = [
        token_view.Panel("x", [900, 1.23456, math.nan, 3]),
        token_view.Panel("y", [900, 5, -7, 0]),
        token_view.Panel("d", [9e9, -8, 2, math.inf], is_signed=True),
    ]
    drawn = token_view.payload(tokens, panels, name="n")
    assert drawn["scales"] == [5, 8]
    assert drawn["panels"][0]["values"] == [900, 1.235, None, 3]
    assert token_view.payload(tokens, panels, name="n", with_special=True)["scales"] == [900, 9e9]
    assert token_view.payload(tokens, panels[:1], name="other")["tokens"] == drawn["tokens"]
    assert token_view.payload(tokens[1:], [], name="n")["tokens"] != drawn["tokens"]
    with pytest.raises(InputError, match="one value for each token"):
        token_view.payload(tokens, [token_view.Panel("x", [1])], name="n")


def test_bands_begin_where_the_template_opens_a_message():
    tokens = tokens_of("chat")
    drawn = token_view.payload(tokens, [], name="n", turns=[message.role for message in CHAT])
    opened = [(drawn["texts"][box], drawn["texts"][box + 1], turn) for box, turn in drawn["bands"]]
    assert opened[:3] == [("<|im_start|>", "system", 0), ("<|im_start|>", "user", 1), ("<|im_start|>", "ass", 2)]
    assert [turn for *_, turn in opened] == [0, 1, 2, 3, 4, -1]
