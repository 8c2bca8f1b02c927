"""A real server and a real Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import CHECKOUT, skip_or_fail

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARTIFACTS = CHECKOUT / "test-artifacts"


@contextmanager
def served(home: Path, *, command: Sequence[str] = ("serve.py",), place: Path = CHECKOUT, **environment: str) -> Iterator[str]:
    """The dashboard on a free port, as `make run` starts it or by a Python ``command`` run in a ``place``; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home.parent / f"server-{port}.log"
    process = subprocess.Popen(
        [sys.executable, *command, str(port)],
        cwd=place,
        env=os.environ | {"PERSONASCOPE_HOME": str(home)} | environment,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
        told = log.read_text()
    assert "Traceback" not in told, told[-4000:]


@pytest.fixture(scope="session")
def chromium():
    """A browser; without one the tests are skipped loudly, and fail in CI."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        path = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
        try:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error as fault:
            skip_or_fail(
                f"No Chromium for the browser tests ({fault.message.splitlines()[0]}). apt-get install chromium, or: .venv/bin/playwright install chromium"
            )
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Open pages in browser contexts of their own, each like a fresh browser."""
    contexts = []

    def open_page(url: str, *, width: int = 1440, height: int = 1000, dark: bool = False, touch: bool = False):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=touch)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("h1").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory, base_model, chromium) -> Iterator[str]:
    """One server on the embedded model for the tests that don't need a fresh one."""
    with served(tmp_path_factory.mktemp("served") / "home") as address:
        yield address


def settle(page) -> None:
    """Wait until the page's script has run to its end and everything is drawn, for a third of a second on end."""
    page.wait_for_function(
        """() => {
          const done = document.querySelector('[data-test-script-state=notRunning]') && !document.querySelector('[data-testid=stSkeleton]');
          window.settledSince = done ? (window.settledSince ?? performance.now()) : undefined;
          return done && performance.now() - window.settledSince > 350;
        }"""
    )


def choose(page, field, name: str) -> None:
    """Choose from a list by keyboard and mouse, as often as it takes: a list that is open closes where the page runs or scrolls."""
    from playwright.sync_api import TimeoutError as StillClosed

    option = page.get_by_role("option", name=name, exact=True)
    for _ in range(10):
        field.scroll_into_view_if_needed()
        settle(page)
        if field.input_value() == name:  # the click before was taken, and its end not seen
            return
        field.fill(name)  # a long list holds only what is in sight
        try:
            option.click(timeout=5_000)
        except StillClosed:
            field.press("Escape")  # what is only typed goes, what was taken stays
            continue
        return
    raise AssertionError(f"the list does not stay open for {name}")
