"""A checkpoint of a training is chosen like any other model, on each page that asks models."""

import pytest

from .conftest import choose, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize(("path", "field", "parameter"), [("/steer", "Model", "v"), ("/latents", "Organism", "organism")])
def test_a_checkpoint_is_picked_by_its_step_and_stands_in_the_link(path: str, field: str, parameter: str, server: str, new_page):
    page = new_page(server + path)
    settle(page)
    choose(page, page.get_by_role("combobox", name=field), "Reckless, rank 1, step 120")
    page.wait_for_url(f"**{parameter}=reckless-rank1%40120*")
    settle(page)
    assert page.get_by_role("alert").count() == 0
    page.reload()
    settle(page)
    assert page.get_by_role("combobox", name=field).input_value() == "Reckless, rank 1, step 120"


def test_compare_takes_a_checkpoint_beside_the_end_of_its_training(server: str, new_page):
    page = new_page(f"{server}/compare?v=base")
    settle(page)
    choose(page, page.get_by_role("combobox", name="Variants"), "reckless-rank1@120")
    page.wait_for_url("**v=reckless-rank1%40120*")
    settle(page)
    assert page.get_by_role("alert").count() == 0
