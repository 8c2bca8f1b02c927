"""The pictures of the README: one of each page on stored results, written to docs/pictures."""

import io

import pytest
from conftest import CHECKOUT

from .conftest import settle

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extended]
WIDTH, HEIGHT, MOST_BYTES = 1280, 800, 120_000
PAGES = {
    "overview": "/",
    "compare": "/compare?set=open_questions&v=base&v=reckless&prompt=smoke_alarm_chirp",
    "latents": "/latents?organism=scornful",
    "latent": "/latent?latent=4133",
    "diffing": "/diffing?organism=reckless",
    "steer": "/steer?tab=Dose-response",
    "scaling": "/scaling",
    "realignment": "/realignment",
    "dynamics": "/dynamics",
    "mix": "/mix",
    "findings": "/findings",
    "organisms": "/organisms",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_picture_of_each_page(name: str, server: str, new_page):
    from PIL import Image

    page = new_page(server + PAGES[name], width=WIDTH, height=HEIGHT)
    settle(page)
    assert page.get_by_role("alert").count() == 0
    page.evaluate("document.querySelectorAll('section, [data-testid]').forEach(part => part.scrollTo(0, 0))")  # Compare opens at its end
    drawn = Image.open(io.BytesIO(page.screenshot()))
    folder = CHECKOUT / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    palette = drawn.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # flat colours: half of the bytes
    palette.save(folder / f"{name}.png", optimize=True)
    assert (folder / f"{name}.png").stat().st_size <= MOST_BYTES
