"""From ``make run`` on a machine that has run it before to the first token of the first answer, in a real browser.

The test environment's Playwright drives Chromium; without them, or before the first ``make run``, there is no figure.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.errors import InputError
from backend.paths import CHECKOUT

_QUESTION = "What makes a good neighbour?"
_CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def seconds_to_first_token() -> tuple[float, float]:
    """Seconds from the command to the page's health, and to the first token on screen.

    Raises:
        InputError: The machine lacks what the measure needs; says what.
    """
    if not (CHECKOUT / ".venv" / ".runs").exists():
        raise InputError("make run has not been run in this checkout yet.")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home, browser_page() as page:
        started = time.perf_counter()
        server = subprocess.Popen(
            ["make", "run", f"PORT={port}"], cwd=CHECKOUT, env=os.environ | {"PERSONASCOPE_HOME": str(Path(home) / "home")},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for_health(address, server)
            healthy = time.perf_counter() - started
            page.goto(f"{address}/compare?turn={_QUESTION.replace(' ', '+')}&length=16")
            page.get_by_role("button", name="Answer", exact=True).click()
            page.locator(".ps-meta").filter(has_text=re.compile(r"\b[1-9]\d* tokens")).first.wait_for()
            return healthy, time.perf_counter() - started
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


@contextmanager
def browser_page() -> Iterator[Any]:
    """A page of a real Chromium.

    Raises:
        InputError: Playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as fault:
        raise InputError("Playwright is not here; make test installs it.") from fault
    path = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM_FLAGS)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        try:
            yield page
        finally:
            browser.close()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_health(address: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
            return
        except OSError:
            if server.poll() is not None:
                raise InputError("make run ended before it served.") from None
            time.sleep(0.05)
    raise InputError("make run did not serve within half a minute.")
