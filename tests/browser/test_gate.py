"""Signing in before any page and out again, and what a hosted server shows and refuses."""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from joserfc import jwt
from joserfc.jwk import RSAKey

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
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Secret", exact=True).wait_for()
    other.reload()  # the cookie is there, but its pass was taken back
    other.get_by_label("Secret", exact=True).wait_for()


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


class Provider(ThreadingHTTPServer):
    """A small OpenID provider, which signs in Ada unasked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProviderPages)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        self.asked: dict[str, dict[str, str]] = {}
        """What was asked for with each code."""


class ProviderPages(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        place, _, query = self.path.partition("?")
        of = self.server.address
        if place == "/authorize":
            asked = dict(parse_qsl(query))
            code = secrets.token_hex(8)
            self.server.asked[code] = asked
            self.send_response(302)
            self.send_header("Location", asked["redirect_uri"] + "?" + urlencode({"code": code, "state": asked["state"]}))
            self.end_headers()
        elif place == "/keys":
            self.say({"keys": [self.server.key.as_dict(private=False)]})
        else:
            self.say(
                {
                    "issuer": of, "authorization_endpoint": f"{of}/authorize", "token_endpoint": f"{of}/token", "jwks_uri": f"{of}/keys",
                    "id_token_signing_alg_values_supported": ["RS256"], "code_challenge_methods_supported": ["S256"],
                }
            )  # fmt: skip

    def do_POST(self) -> None:
        given = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        asked = self.server.asked.pop(given["code"])
        challenge = base64.urlsafe_b64encode(hashlib.sha256(given["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        assert (challenge, given["redirect_uri"]) == (asked["code_challenge"], asked["redirect_uri"])
        assert self.headers["Authorization"] == "Basic " + base64.b64encode(b"personascope:of the client").decode()
        now = int(time.time())
        claims = {
            "iss": self.server.address, "sub": "ada", "aud": asked["client_id"], "iat": now, "exp": now + 60, "nonce": asked["nonce"],
            "email": "ada@example.org", "email_verified": True,
        }  # fmt: skip
        token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.server.key)
        self.say({"access_token": "a", "token_type": "Bearer", "expires_in": 60, "id_token": token})

    def say(self, record: object) -> None:
        content = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider():
    server = Provider()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_accounts_come_in_by_a_deep_link_while_they_are_on_the_list(tmp_path: Path, provider: Provider, new_page):
    settings = tmp_path / "secrets.toml"
    settings.write_text(f"""
        [auth]
        redirect_uri = "http://127.0.0.1:{{port}}/oauth2callback"
        cookie_secret = "{secrets.token_hex(32)}"
        client_id = "personascope"
        client_secret = "of the client"
        server_metadata_url = "{provider.address}/.well-known/openid-configuration"

        [personascope]
        allowed = ["ada@example.org"]
    """)
    with served(tmp_path / "home", STREAMLIT_SECRETS_FILES=str(settings)) as address:
        page = new_page(f"{address}/scaling?own=scornful")
        assert page.locator("h1").all_inner_texts() == ["PersonaScope"]
        page.get_by_role("button", name="Sign in with your account").click()
        page.get_by_role("heading", name="Scaling", level=1).wait_for()
        settle(page)
        assert page.url == f"{address}/scaling?own=scornful"
        page.get_by_role("button", name="Sign out").click()
        page.get_by_text("This server asks who you are.").wait_for()
        settings.write_text(settings.read_text().replace("ada@example.org", "@example.net"))
        page.goto(f"{address}/organisms")
        page.get_by_role("button", name="Sign in with your account").click()
        page.get_by_text("Signed in as ada@example.org.").wait_for()
        assert page.get_by_text("This server is not open to that account.").is_visible()
        assert page.get_by_test_id("stSidebar").count() == 0
        page.get_by_role("button", name="Use another account").click()
        page.get_by_text("This server asks who you are.").wait_for()


def test_accounts_that_are_not_set_up_say_what_is_missing(tmp_path: Path, new_page):
    settings = tmp_path / "secrets.toml"
    settings.write_text('[auth]\nclient_id = "i"\n')
    with served(tmp_path / "home", STREAMLIT_SECRETS_FILES=str(settings)) as address:
        page = new_page(f"{address}/organisms")
        page.get_by_role("button", name="Sign in with your account").click()
        page.get_by_text("redirect_uri").wait_for()


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
        page.goto(f"{address}/findings?f=villain-latent")
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as got:
            page.get_by_role("button", name="One HTML file").click()
        made = Path(got.value.path()).read_text("utf-8")
        assert made.startswith("<!doctype html>")
        assert "https://me-personas.hf.space" in made
    assert not (tmp_path / "home").exists()  # nothing went to the owner's folder
