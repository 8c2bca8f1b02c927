"""Every page of a fresh server, in light and dark, wide and narrow, held to axe; pictures go to test-artifacts/."""

import re
from pathlib import Path

import pytest
from conftest import CHECKOUT

from .conftest import ARTIFACTS, served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = {
    "overview": "/",
    "compare": "/compare",
    "compare-replay": "/compare?set=open_questions&v=base&v=reckless&v=scornful",
    "scaling": "/scaling?own=scornful",
    "latents": "/latents?organism=scornful",
    "latent-dictionary": "/latent",
    "latent": "/latent?latent=4133",
    "diffing": "/diffing?organism=scornful",
    "causal": "/diffing?organism=scornful&tab=What+is+causal",
    "steer": "/steer",
    "dose-response": "/steer?tab=Dose-response",
    "realignment": "/realignment",
    "dynamics": "/dynamics",
    "mix": "/mix",
    "findings": "/findings",
    "organisms": "/organisms",
}
CHART_TEXT_TOO_FAINT = """() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = parts(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor);
  return [...document.querySelectorAll('[data-testid=stVegaLiteChart] svg text')].filter(text => text.textContent.trim()).filter(text => {
    const style = getComputedStyle(text), opacity = Number(style.opacity) * Number(style.fillOpacity);
    if (!opacity) return false; // a label that Vega left out
    const drawn = parts(style.fill).slice(0, 3).map((v, i) => v * opacity + ground[i] * (1 - opacity));
    const [low, high] = [light(drawn), light(ground)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05) < 4.5;
  }).map(text => text.textContent);
}"""
TITLES_CUT = """() => [...document.querySelectorAll('[data-testid=stVegaLiteChart] svg')].flatMap(svg => {
  const drawn = svg.getBoundingClientRect(), isCut = ({ left, right }) => left < drawn.left - 4 || right > drawn.right + 4;
  return [...svg.querySelectorAll('.role-title text, .role-axis-title text')].filter(text => text.textContent.includes('…') || isCut(text.getBoundingClientRect()))
    .map(text => text.textContent);
})"""

FIRST_VISITS = [name for name in PAGES if name not in ("compare-replay", "latent", "causal")]  # each page once


@pytest.mark.parametrize("page_name", [name if name in ("compare", "findings") else pytest.param(name, marks=pytest.mark.extended) for name in FIRST_VISITS])
def test_a_deep_link_is_the_first_visit_of_a_fresh_server(page_name: str, new_page, base_model, tmp_path: Path):
    with served(tmp_path / "home") as address:
        page = new_page(address + PAGES[page_name])
        settle(page)
        assert page.get_by_text("Page not found").count() == 0
        assert page.get_by_role("alert").count() == 0


def test_streamlit_alone_serves_it_from_any_folder(new_page, base_model, tmp_path: Path):
    command = ("-m", "streamlit", "run", str(CHECKOUT / "app.py"), "--server.port")
    with served(tmp_path / "home", command=command, place=tmp_path) as address:
        page = new_page(address + PAGES["mix"])
        settle(page)
        page.get_by_role("heading", name="Data mix", exact=True).wait_for()
        assert page.locator("[role=dialog], [data-testid=stException]").count() == 0


IN_LIGHT_TOO = ("overview", "compare-replay", "latents", "dose-response", "findings")  # of the other pages in `make test-all`


@pytest.mark.parametrize(
    ("page_name", "dark"),
    [
        pytest.param(name, dark, id=f"{name}-{'dark' if dark else 'light'}", marks=() if dark or name in IN_LIGHT_TOO else pytest.mark.extended)
        for name in PAGES
        for dark in (False, True)
    ],
)
def test_axe_finds_no_serious_fault_and_the_page_fits_phones_and_wide_monitors(page_name: str, dark: bool, server: str, new_page):
    from axe_playwright_python.sync_playwright import Axe

    page = new_page(server + PAGES[page_name], dark=dark)
    settle(page)
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{page_name}-{'dark' if dark else 'light'}.png", full_page=True)
    results = Axe().run(page, context={"exclude": [["[data-testid=stSidebarNavItems]"]]})  # Streamlit's own list
    found = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in results.response["violations"] if v["impact"] in ("serious", "critical")]
    assert found == []
    assert page.evaluate(CHART_TEXT_TOO_FAINT) == []  # axe does not look into pictures
    width = 390 if dark else 2560
    page.set_viewport_size({"width": width, "height": 1000})
    settle(page)
    page.screenshot(path=ARTIFACTS / f"{page_name}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(TITLES_CUT) == []
    widest = page.evaluate("Math.max(0, ...[...document.querySelectorAll('.ps-text')].map(e => e.clientWidth / parseFloat(getComputedStyle(e).fontSize)))")
    assert widest <= 60  # em: lines stay readable however wide the monitor


def _parameters() -> list[str]:
    """Names of everything that pages read from a link."""
    found: set[str] = set()
    for path in (CHECKOUT / "pages").rglob("*.py"):
        text = path.read_text("utf-8")
        for pattern in (r'key="([a-z_]+)"', r'kept_list\("([a-z_]+)"', r'query_params(?:\.get(?:_all)?\(|\[)"([a-z_]+)"', r'"([a-z_]+)", \d'):
            found |= set(re.findall(pattern, text))
    return sorted(found)


@pytest.mark.extended
@pytest.mark.parametrize(
    "wrong", ["-1e999", "nan", "%3Cimg src%3Dx onerror%3D%22window.hacked%3D1%22%3E **b** $x$", "%00%FF"], ids=["infinite", "nan", "markup", "bytes"]
)
def test_a_link_with_every_parameter_wrong_is_told_and_shows_the_default(wrong: str, server: str, new_page):
    names = _parameters()
    assert {"length", "organism", "diff_page", "f", "seed"} <= set(names)
    page = new_page(server)
    for path in dict.fromkeys(path.split("?")[0] for path in PAGES.values()):
        page.goto(f"{server}{path}?" + "&".join(f"{name}={wrong}" for name in names))
        page.locator("h1").first.wait_for()
        settle(page)
        assert page.locator("[data-testid=stException]").count() == 0, path
        assert page.evaluate("window.hacked") is None, path
        assert page.locator("[data-testid=stMain] img[onerror]").count() == 0, path


@pytest.mark.parametrize("link", ["/compare?length=inf&samples=1e999", "/steer?seed=-inf&length=1e999", "/diffing?q=zzzzqq"])
def test_a_wrong_number_or_a_search_without_a_find_is_told(link: str, server: str, new_page):
    page = new_page(server + link)
    settle(page)
    page.get_by_text("This link asks for").or_(page.get_by_text("No latent has these words")).first.wait_for()
    assert page.locator("[data-testid=stException]").count() == 0


def test_nothing_is_loaded_from_elsewhere(server: str, new_page):
    page = new_page(server)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in PAGES.values():
        page.goto(server + path)
        page.locator("h1").first.wait_for()
        settle(page)
    assert [url for url in asked if not url.startswith((server, server.replace("http", "ws"), "data:", "blob:"))] == []
