"""Signing in before any page, and what a hosted server shows and refuses."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from .conftest import served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SECRET = "a secret of the house"


@pytest.fixture(scope="module")
def closed(tmp_path_factory, chromium):
    """A server that asks for a secret; its address and its log."""
    home = tmp_path_factory.mktemp("closed") / "home"
    with served(home, PERSONASCOPE_SECRET=SECRET) as address:
        yield address, home.parent


def sign_in(page, secret: str) -> None:
    page.get_by_label("Secret", exact=True).fill(secret)
    page.get_by_role("button", name="Sign in").click()


def test_a_deep_link_opens_after_the_secret_and_not_before(closed, new_page):
    address, folder = closed
    page = new_page(f"{address}/dynamics?v=base")
    for path in ("compare?v=base", "findings", "no_such_page"):
        page.goto(f"{address}/{path}")
        page.get_by_label("Secret", exact=True).wait_for()
        assert page.locator("h1").all_inner_texts() == ["PersonaScope"]
        assert page.get_by_test_id("stSidebar").count() == 0
    page.goto(f"{address}/scaling?own=scornful")
    page.get_by_label("Secret", exact=True).wait_for()
    sign_in(page, "no secret")
    page.get_by_text("That is not the secret.").wait_for()
    sign_in(page, SECRET)
    page.get_by_role("heading", name="Scaling", level=1).wait_for()
    settle(page)
    assert page.url == f"{address}/scaling?own=scornful"
    page.reload()  # the pass is a cookie now
    page.get_by_role("heading", name="Scaling", level=1).wait_for()
    other = page.context.new_page()
    other.goto(f"{address}/organisms")
    other.get_by_role("heading", name="Organisms", level=1).wait_for()
    (cookie,) = [c for c in page.context.cookies() if c["name"] == "personascope_pass"]
    assert cookie["sameSite"] == "Strict"
    assert SECRET not in cookie["value"] + page.url + "".join(log.read_text() for log in folder.glob("*.log"))


@pytest.mark.parametrize("dark", [False, True])
def test_the_question_is_readable_for_all(closed, new_page, dark: bool):
    page = new_page(closed[0], dark=dark, width=390 if dark else 1440)
    settle(page)
    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert found == []
    page.get_by_label("Secret", exact=True).focus()
    page.keyboard.type(SECRET)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="What did this model become?").wait_for()


def test_accounts_without_their_package_say_what_to_install(tmp_path: Path, new_page):
    settings = tmp_path / "secrets.toml"
    provider = '[auth]\nredirect_uri = "http://localhost/oauth2callback"\ncookie_secret = "c"\nclient_id = "i"\nclient_secret = "s"\n'
    settings.write_text(provider + 'server_metadata_url = "http://localhost/none"\n')
    with served(tmp_path / "home", STREAMLIT_SECRETS_FILES=str(settings)) as address:
        page = new_page(f"{address}/organisms")
        assert page.locator("h1").all_inner_texts() == ["PersonaScope"]
        page.get_by_role("button", name="Sign in with your account").click()
        page.get_by_text("pip install Authlib").wait_for()


def test_a_hosted_server_says_nothing_of_its_machine_and_keeps_to_its_limits(tmp_path: Path, new_page):
    with served(
        tmp_path / "home", PERSONASCOPE_HOSTED="1", SPACE_HOST="me-personas.hf.space", PERSONASCOPE_JUDGE_URL="http://127.0.0.1:9", PERSONASCOPE_JUDGE_KEY="k"
    ) as address:
        page = new_page(f"{address}/compare?v=base&set=open_questions&__sign=of-the-visitor")
        settle(page)
        page.get_by_role("button", name="Link").click()
        link = page.locator("code").filter(has_text="hf.space")
        link.wait_for()
        assert link.inner_text() == "https://me-personas.hf.space/compare?v=base&set=open_questions"
        assert str(Path.home()) not in page.locator("body").inner_text()
    assert not (tmp_path / "home").exists()  # nothing went to the owner's folder
