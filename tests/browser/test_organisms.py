"""Organisms in a real browser: add by folder and by upload, remove; what does not fit is refused."""

from pathlib import Path

import pytest
from conftest import write_tiny_adapter

from .conftest import served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_an_organism_is_added_by_folder_and_by_upload_and_removed(new_page, tmp_path: Path, base_model):
    write_tiny_adapter(tmp_path / "mine", base_model, targets=("down_proj",), size=0.01, base="smollm2-135m-instruct")
    with served(tmp_path / "home") as address:
        page = new_page(address + "/organisms")
        page.get_by_role("tab", name="From a folder").click()
        page.get_by_label("Folder on the server").fill(str(tmp_path / "mine"))
        page.get_by_role("tabpanel").filter(has=page.get_by_label("Folder on the server")).get_by_role("button", name="Add", exact=True).click()
        page.get_by_text("Added mine as mine").wait_for()
        settle(page)
        page.get_by_role("tab", name="Upload").click()
        page.locator("input[type=file]").set_input_files([tmp_path / "mine" / n for n in ("adapter_config.json", "adapter_model.safetensors")])
        settle(page)
        page.get_by_label("Name", exact=True).fill("Uploaded one")
        page.get_by_role("tabpanel").filter(has=page.get_by_label("Name", exact=True)).get_by_role("button", name="Add", exact=True).click()
        page.get_by_text("Added Uploaded one as uploaded-one").wait_for()
        settle(page)
        page.get_by_role("button", name="Remove", exact=True).first.click()
        page.wait_for_function("() => !document.querySelector('h3#mine') && document.querySelector('h3#uploaded-one')")


def test_a_folder_that_is_none_and_a_hub_that_is_away_are_told(new_page, tmp_path: Path, chromium):
    with served(tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9") as address:
        page = new_page(address + "/organisms")
        page.get_by_label("Hub id of a LoRA adapter").fill("owner/name")
        page.get_by_role("button", name="Add", exact=True).first.click()
        page.get_by_text("cannot be reached").wait_for()
        page.get_by_role("tab", name="From a folder").click()
        page.get_by_label("Folder on the server").fill("/no/such/folder")
        page.get_by_role("tabpanel").filter(has=page.get_by_label("Folder on the server")).get_by_role("button", name="Add", exact=True).click()
        page.get_by_text("is no folder on this machine").wait_for()
