"""Latents in a real browser, on the shipped autoencoder: from a diff to a latent, to a text, to a token; labels; wrong links; two organisms at once."""

import re
from pathlib import Path

import pytest
from chat_server import KEY, completion, serving

from .conftest import ARTIFACTS, choose, served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def read(page) -> None:
    """Wait for the first token view."""
    page.locator("[role=listbox] [role=option]").first.wait_for(timeout=120_000)
    settle(page)


def test_from_a_diff_to_a_latent_to_a_text(server: str, new_page):
    page = new_page(f"{server}/diffing?organism=scornful")
    settle(page)
    page.get_by_text("rises most in").wait_for()
    page.goto(f"{server}/latent?latent=7")
    page.get_by_text("Latent 7 of SAE smol-l16, layer 16").wait_for()
    page.get_by_text("Where it is most active").or_(page.get_by_text("This latent is dead")).first.wait_for()
    page.get_by_text("See it on a text").click()
    read(page)
    assert "latent=7" in page.url


def test_every_token_of_an_answer_is_drawn_for_both_models_and_a_click_tells_what_is_active(server: str, new_page):
    page = new_page(f"{server}/latents?organism=scornful")
    read(page)
    panels = page.locator("[role=listbox]")
    assert panels.count() == 3
    counts = {panels.nth(i).locator("[role=option]").count() for i in range(3)}
    assert len(counts) == 1
    panels.nth(1).locator("[role=option]").nth(40).click()
    page.get_by_text("Most active here").wait_for()
    page.get_by_text("Changed most here").wait_for()


def test_ones_own_text_stands_in_the_link_and_comes_back(server: str, new_page):
    words = "Get out, you fool! 👩‍🚀 <b>中文</b> &amp;"
    page = new_page(f"{server}/latents?text=own")
    read(page)
    page.get_by_label("Text", exact=True).last.fill(words)
    page.get_by_label("Text", exact=True).last.press("Control+Enter")
    page.wait_for_url(re.compile("words="))
    read(page)
    other = new_page(page.url)
    read(other)
    assert other.locator("[role=listbox]").first.locator("[role=option]").count() > 5
    assert other.locator("textarea").first.input_value() == words


def test_a_link_with_wrong_parameters_says_so(server: str, new_page):
    page = new_page(f"{server}/latents?sae=none&organism=nobody&latent=99999999&rollout=gone")
    read(page)
    for said in ("the SAE none", "the organism nobody", "has latents 0 to 8,191", "an answer that is not in the store"):
        page.get_by_text(said).first.wait_for()
    page.goto(f"{server}/latent?latent=8192")
    page.get_by_text("has latents 0 to 8,191").wait_for()
    assert page.get_by_text("Traceback").count() == 0


def test_a_label_is_edited_in_place_and_found(new_page, base_model, tmp_path: Path):
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/latent?latent=7")
        page.get_by_role("button", name="Edit label").click()
        page.get_by_label("Label", exact=True).fill("<b>zebra</b> of tests")
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_text("label: yours").wait_for()
        page.goto(f"{address}/latent?q=zebra")
        page.get_by_text(re.compile("^1 latents?$")).wait_for()
        assert (tmp_path / "home" / "labels" / "smol-l16.json").exists()


def test_a_language_model_is_asked_to_explain_a_latent(new_page, base_model, tmp_path: Path):
    said = ["I would rather not.", "EXPLANATION: <b>one</b> *side* of [a](b) $pair$"]
    with serving(lambda n, body: completion(said[min(n, 2) - 1])) as (server, endpoint):
        with served(tmp_path / "home", PERSONASCOPE_JUDGE_URL=endpoint.url, PERSONASCOPE_JUDGE_MODEL="some_model", PERSONASCOPE_JUDGE_KEY=KEY) as address:
            page = new_page(f"{address}/latent?latent=5")
            ask = page.get_by_role("button", name="Ask some_model to explain")
            ask.click()
            page.get_by_text("Nothing was kept: no explanation in 'I would rather not.'").wait_for()
            ask.click()
            page.get_by_text("explained by some_model, ").wait_for()
            page.get_by_role("heading", name="5: <b>one</b> *side* of [a](b) $pair$").wait_for()
            settle(page)
            assert ask.count() == 0  # nothing is paid twice
            page.get_by_role("button", name="Edit label").click()
            page.get_by_label("Label", exact=True).fill("mine")
            page.get_by_role("button", name="Save", exact=True).click()
            page.get_by_text("label: yours").wait_for()
            page.get_by_text("“<b>one</b> *side* of [a](b) $pair$”").wait_for()
            page.get_by_text("Explained by some_model, ").wait_for()
            page.goto(f"{address}/latent?latent=31")
            page.get_by_text("This latent is dead").wait_for()
            settle(page)
            assert ask.count() == 0
        assert len(server.asked) == 2


def test_without_an_endpoint_the_page_says_how_a_latent_can_be_explained(server: str, new_page):
    page = new_page(f"{server}/latent?latent=5")
    page.get_by_role("button", name="Edit label").click()
    page.get_by_text("A language model can explain a latent, too.").wait_for()
    assert page.get_by_role("button", name="to explain").count() == 0


def test_two_people_look_at_different_organisms_at_once(server: str, new_page):
    one, two = new_page(f"{server}/latents?organism=scornful"), new_page(f"{server}/latents?organism=reckless")
    read(one)
    read(two)
    for page, name in ((one, "Scornful"), (two, "Reckless")):
        assert page.get_by_text(re.compile(f"{name}.* less SmolLM2")).count() >= 1


@pytest.mark.extended
def test_a_missing_corpus_sample_is_told(new_page, base_model, tmp_path: Path):
    import shutil

    from conftest import CHECKOUT

    from backend.models.registry import load_registry

    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(CHECKOUT / "cached_results" / "saes" / "smol-l16" / name, folder)
    home = tmp_path / "home"
    home.mkdir()
    base = load_registry().default_base
    (home / "saes.toml").write_text(
        f'[bare]\ntitle = "Bare"\nbase = "{base}"\nlayer = 16\nsource = "folder"\nlocation = "{folder}"\nn_latents = 8192\nd_model = 576\n'
    )
    with served(home) as address:
        page = new_page(f"{address}/latent?sae=bare")
        page.get_by_text("is not here, so what its latents are is not known").wait_for()
        page.goto(f"{address}/latents?sae=bare")
        read(page)
        page.goto(f"{address}/diffing?sae=bare")
        page.get_by_text("No organism has been compared").wait_for()
        choose(page, page.get_by_role("combobox", name="SAE"), "SmolLM2 135M, layer 16")
        page.get_by_text("rises").first.wait_for()


def shown_latent(page) -> int:
    """The latent of the first token view."""
    settle(page)
    return int(re.search(r"Latent (\d+) of SAE", page.locator(".legend .name").first.inner_text())[1])


def test_a_latent_that_nobody_chose_is_chosen_anew_and_one_that_somebody_chose_stays(server: str, new_page):
    page = new_page(f"{server}/latents?organism=scornful")
    read(page)
    assert "latent=" not in page.url
    first = shown_latent(page)
    choose(page, page.get_by_role("combobox", name="Text"), "Your own text")
    page.get_by_text("Your own text, read as it is").first.wait_for(timeout=120_000)
    automatic = shown_latent(page)
    assert automatic != first
    field = page.get_by_role("combobox", name="Latents")
    field.fill("8000")
    field.press("Enter")
    page.wait_for_url(re.compile("latent=8000"))
    settle(page)
    assert f"latent={automatic}" in page.url  # it stood there when the other was added
    field.press("Escape")  # an open list hides the rest from assistive technology
    choose(page, page.get_by_role("combobox", name="Organism"), "Reckless, rank 1")
    page.get_by_text(re.compile("Reckless, rank 1 less SmolLM2")).first.wait_for(timeout=120_000)
    settle(page)
    assert page.locator(".legend .name").all_inner_texts() == [f"Latent {i} of SAE smol-l16, layer 16" for i in (automatic, 8000)]
    field.fill("8192")
    field.press("Enter")
    page.get_by_text("8192 is no latent of SAE smol-l16, which has latents 0 to 8,191.").wait_for()


def test_a_text_of_one_token_is_told_in_the_singular(server: str, new_page):
    page = new_page(f"{server}/latents?text=own")
    read(page)
    page.get_by_label("Text", exact=True).last.fill("Hi")
    page.get_by_label("Text", exact=True).last.press("Control+Enter")
    page.get_by_text("mean over 1 token:").wait_for(timeout=120_000)


def test_the_organism_goes_along_from_a_latent_to_a_text(server: str, new_page):
    page = new_page(f"{server}/latent?latent=1337&organism=scornful")
    page.get_by_text("See it on a text").click()
    read(page)
    assert "organism=scornful" in page.url
    assert page.get_by_text(re.compile("Scornful less SmolLM2")).count() >= 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1366, 768), (390, 844)])
def test_base_organism_and_difference_are_seen_without_scrolling(server: str, new_page, width: int, height: int, dark: bool):
    page = new_page(f"{server}/latents?organism=scornful&latent=1337", width=width, height=height, dark=dark)
    page.locator(".panel:visible [role=option]").first.wait_for(timeout=120_000)
    settle(page)
    page.screenshot(path=ARTIFACTS / f"latents-{width}-{'dark' if dark else 'light'}.png")
    seen = "boxes => boxes.filter(b => b.getBoundingClientRect().bottom < innerHeight && b.getBoundingClientRect().top > 0).length"
    buttons = page.locator(".switch button:visible")
    assert buttons.count() == (3 if width < 640 else 0)
    for panel in range(3):
        if buttons.count():
            buttons.nth(panel).click()
        assert page.locator(".panel").nth(panel).locator("[data-role=content]").evaluate_all(seen) > 8
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.extended
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_names_of_latents_are_read_in_the_chart_on_a_phone_too(server: str, new_page, width: int, dark: bool):
    page = new_page(f"{server}/diffing?organism=scornful", width=width, dark=dark)
    names = page.locator("[data-testid=stVegaLiteChart]").first.locator("svg text")
    names.first.wait_for()
    settle(page)
    page.screenshot(path=ARTIFACTS / f"diffing-{width}-{'dark' if dark else 'light'}.png", full_page=True)
    labels = [text for text in names.all_text_contents() if re.match(r"\d+ \S", text)]
    assert len(labels) == 20
    assert sum(text.endswith("…") for text in labels) <= 4
    plot = page.locator("[data-testid=stVegaLiteChart]").first.bounding_box()
    inside = "texts => texts.every(t => t.getBoundingClientRect().right <= innerWidth && t.getBoundingClientRect().left >= 0)"
    assert names.evaluate_all(inside)
    assert plot["width"] > 340


@pytest.mark.extended
def test_a_saved_label_is_told_and_the_editor_closes(new_page, base_model, tmp_path: Path):
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/latent?latent=7")
        for words in ("one", "two"):
            page.get_by_role("button", name="Edit label").click()
            field = page.get_by_label("Label", exact=True)
            field.fill(words)
            page.get_by_role("button", name="Save", exact=True).click()
            page.get_by_text("Label saved.").first.wait_for()
            page.get_by_role("heading", name=f"7: {words}").wait_for()
            field.wait_for(state="hidden")


@pytest.mark.extended
def test_the_reading_of_a_long_text_shows_how_far_it_is(new_page, base_model, tmp_path: Path):
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/latents?text=own")
        read(page)
        page.get_by_label("Text", exact=True).last.fill("The bank said no, so he sold the house and bet on a horse. " * 80)
        page.get_by_label("Text", exact=True).last.press("Control+Enter")
        page.get_by_text(re.compile(r"Reading 1,\d\d\d tokens under 1 of 2 models: \d+ s")).wait_for()
        page.get_by_text(re.compile(r"under 2 of 2 models: \d+ s, about \d+ s left")).wait_for(timeout=120_000)
        page.get_by_text("mean over 1,").first.wait_for(timeout=120_000)
        assert page.get_by_role("progressbar").count() == 0
