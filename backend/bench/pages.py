"""How quick the pages are on stored results: a real Chromium on fresh servers that have no answers but the shipped ones, and no model in memory.

*Cold* is the first visit of a fresh server by a fresh browser, from the address to the first picture. Beside it stands a bare Streamlit page with one small
picture, so that what Streamlit and the machine take can be told from what the page takes. *Warm* is a click in the menu, pages having been seen before. *Memory* is the server's.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from backend.bench.start import browser_page, free_port, wait_for_health
from backend.errors import InputError
from backend.models.machine import describe_machine
from backend.paths import CHECKOUT

N_SESSIONS, N_CLICKS, N_WARM_UP = 8, 200, 50
SWITCH, COLD, IMPORT, GROWTH = 0.5, 1.5, 2.0, 20.0
"""The bars: seconds, and MB over all clicks."""

_STORED = {"compare": "?set=open_questions&v=base&v=reckless", "latent": "?latent=4133", "diffing": "?organism=scornful", "steer": "?tab=Dose-response"}
"""What a page is asked for where it opens without a picture."""

_PICTURE = ", ".join(f"[data-testid=stMainBlockContainer] {kind}" for kind in ("[data-testid=stVegaLiteChart] svg", "canvas", ".ps-card", "[role=listbox]"))
_BARE = """import streamlit as st
st.title("Bare")
st.vega_lite_chart({"data": {"values": [{"a": 1}, {"a": 2}]}, "mark": "point", "encoding": {"x": {"field": "a", "type": "quantitative"}}})
"""
_LINKS = "[data-testid=stSidebarNavLink]"
_AT_REST = "() => document.querySelector('[data-test-script-state=notRunning]') && !document.querySelector('[data-testid=stSkeleton]')"
_ENDED = f"() => document.querySelector('h1') && !document.querySelector('[data-testid=stVegaLiteChart], [data-testid=stDataFrame]') && ({_AT_REST})()"
_FAULTS = "[data-testid=stException], [role=dialog]"
_LONGEST = 180
_IMPORTS = "import time; a = time.perf_counter(); import streamlit; b = time.perf_counter(); {}; print(b - a, time.perf_counter() - b)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure and its bar."""

    work: str
    value: float
    low: float | None = None
    high: float | None = None
    """95 %: of medians a percentile bootstrap over ``n``, of growth the normal interval of the line's slope."""

    ratio: float | None = None
    """How many times as long as a bare Streamlit page takes, or Streamlit's own import."""

    unit: str
    bar: str
    holds: bool | None
    n: int


class PagesBench:
    """Measures one after the other; ``say`` hears all along how far it is."""

    def __init__(self, rounds: int, say: Callable[[str], None]) -> None:
        self._rounds = rounds
        self._say = say

    def run(self) -> Iterator[Figure]:
        """Each figure as soon as it is measured.

        Raises:
            InputError: Playwright is not here, or a server did not start.
        """
        with browser_page() as page:
            browser = page.context.browser
            with served() as (address, _):
                _open(page, address)
                page.locator(_LINKS).first.wait_for()
                names = [urlsplit(link).path.strip("/") for link in page.locator(_LINKS).evaluate_all("links => links.map(link => link.href)")]
            yield self._imports()
            yield from self._cold(browser, names)
            with served() as (address, server):
                yield self._warm(page, address, names)
                yield self._crowd(browser, address)
                yield self._memory(page, address, server)

    def _imports(self) -> Figure:
        """In a process of its own that has Streamlit already: what the router and its pages share, with all that this brings."""
        self._say("Import.")
        modules = ", ".join(f"pages.shared.{path.stem}" for path in sorted((CHECKOUT / "pages" / "shared").glob("[!_]*.py")))
        command = [sys.executable, "-W", "ignore", "-c", _IMPORTS.format(f"import {modules}")]
        told = [subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split() for _ in range(self._rounds)]
        streamlit, own = ([float(times[part]) for times in told] for part in (0, 1))
        return _median("import of what the pages share, Streamlit being there", own, IMPORT, ratio=float(np.median(own) / np.median(streamlit)))

    def _cold(self, browser: Any, names: Sequence[str]) -> Iterator[Figure]:
        bare = []
        for turn in range(self._rounds):
            self._say(f"Cold: a bare page, round {turn + 1} of {self._rounds}.")
            with served(bare=True) as (address, _):
                bare.append(_first_picture(browser, address))
        yield _median("cold: a bare Streamlit page with one picture", bare)
        torch: list[str] = []
        for number, name in enumerate(names, 1):
            seconds = []
            for turn in range(self._rounds):
                self._say(f"Cold: {name or 'overview'}, page {number} of {len(names)}, round {turn + 1} of {self._rounds}.")
                with served() as (address, server):
                    seconds.append(_first_picture(browser, f"{address}/{name}{_STORED.get(name, '')}"))
                    torch += [name] if has_torch(server) else []
            ratio = float(np.median(seconds) / np.median(bare))
            yield _median(f"cold: {name or 'overview'}, to its first picture", seconds, COLD, ratio=ratio)
        loading = list(dict.fromkeys(name or "overview" for name in torch))
        work = f"pages that load torch for a stored result{': ' * bool(loading)}{', '.join(loading)}"
        yield Figure(work=work, value=len(loading), unit="pages", bar="0", holds=not loading, n=len(names))

    def _warm(self, page: Any, address: str, names: Sequence[str]) -> Figure:
        _open(page, address)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        order = walk(len(names), self._rounds + 1)
        for number, place in enumerate(order):
            self._say(f"Warm: click {number + 1} of {len(order)}.")
            taken = _click(page, place)
            if number >= len(names):
                seconds[names[place]].append(taken)
        slowest = max(seconds, key=lambda name: np.median(seconds[name]) if seconds[name] else 0.0)
        every = [s for own in seconds.values() for s in own]
        return _median(f"warm: from the click to the next page's end; slowest {slowest or 'overview'}, {np.median(seconds[slowest]):.2f} s", every, SWITCH)

    def _crowd(self, browser: Any, address: str) -> Figure:
        """Everybody clicks, then everybody waits; faults are what a page shows as one."""
        contexts = [browser.new_context() for _ in range(N_SESSIONS)]
        pages = [context.new_page() for context in contexts]
        for page in pages:
            page.set_default_timeout(1000 * _LONGEST)
            _open(page, address)
        n_pages, n_clicks, faults = pages[0].locator(_LINKS).count(), 2 * self._rounds, 0
        for number, places in enumerate(zip(*(walk(n_pages, n_clicks, seed)[:n_clicks] for seed in range(N_SESSIONS)), strict=True), 1):
            self._say(f"{N_SESSIONS} sessions at once: click {number} of {n_clicks}.")
            left = [_leave(page, place) for page, place in zip(pages, places, strict=True)]
            for page, title in zip(pages, left, strict=True):
                _arrive(page, title)
                faults += page.locator(_FAULTS).count()
        for context in contexts:
            context.close()
        work = f"faults on screen, {N_SESSIONS} sessions clicking at once"
        return Figure(work=work, value=faults, unit="faults", bar="0", holds=not faults, n=n_clicks * N_SESSIONS)

    def _memory(self, page: Any, address: str, server: psutil.Process) -> Figure:
        """Growth over the clicks: the slope of a line through the server's memory after each."""
        _open(page, address)
        held = []
        for number, place in enumerate(walk(page.locator(_LINKS).count(), N_WARM_UP + N_CLICKS)[: N_WARM_UP + N_CLICKS], 1):
            self._say(f"Memory: click {number} of {N_WARM_UP + N_CLICKS}.")
            _click(page, place)
            held.append(server.memory_info().rss / 1e6)
        at, held = np.arange(N_CLICKS), held[N_WARM_UP:]
        (slope, _), variance = np.polyfit(at, held, 1, cov=True)
        growth, half = slope * N_CLICKS, 1.96 * float(variance[0, 0]) ** 0.5 * N_CLICKS
        return Figure(
            work=f"memory of the server, growth over {N_CLICKS} clicks at {np.median(held):.0f} MB", value=float(growth), low=float(growth - half), high=float(growth + half),
            unit="MB", bar=f"under {GROWTH:g}", holds=bool(growth < GROWTH), n=N_CLICKS,
        )  # fmt: skip


@contextmanager
def served(*, bare: bool = False) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a fresh server without any answers but the shipped ones; or of one with a bare page.

    Raises:
        InputError: It did not start.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        command, where = ["serve.py", str(port)], CHECKOUT
        if bare:
            (Path(home) / "bare.py").write_text(_BARE, "utf-8")
            command, where = ["-m", "streamlit", "run", "bare.py", "--server.port", str(port), "--server.headless", "true"], Path(home)
        environment = os.environ | {"PERSONASCOPE_HOME": str(Path(home) / "home")}
        server = subprocess.Popen([sys.executable, *command], cwd=where, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_health(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait(timeout=30)


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """What ``--json`` prints and the store keeps."""
    return {"rows": [asdict(f) for f in figures], "machine": describe_machine() | {"load_after": psutil.getloadavg()}}


def _open(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("h1").first.wait_for()
    page.wait_for_function(_AT_REST)


def _first_picture(browser: Any, address: str) -> float:
    """Seconds from the address to the first thing drawn, or to the end of a page without any, in a browser that has seen nothing yet.

    Raises:
        InputError: Nothing came.
    """
    context = browser.new_context()
    page = context.new_page()
    drawn = page.locator(_PICTURE).filter(visible=True)
    try:
        started = time.perf_counter()
        page.goto(address, wait_until="commit")
        while not (drawn.count() or page.evaluate(_ENDED)):
            if time.perf_counter() - started > _LONGEST:
                raise InputError(f"{urlsplit(address).path} drew nothing within {_LONGEST} seconds. Measure on a machine that does nothing else.")
            page.wait_for_timeout(20)
        return time.perf_counter() - started
    finally:
        context.close()


def _click(page: Any, place: int) -> float:
    """Seconds from a click in the menu until the next page's script has run to its end."""
    started = time.perf_counter()
    _arrive(page, _leave(page, place))
    return time.perf_counter() - started


def _leave(page: Any, place: int) -> str:
    """Click in the menu; the title of the page that is left."""
    title = page.locator("h1").first.inner_text()
    page.locator(_LINKS).nth(place).click()
    return title


def _arrive(page: Any, title: str) -> None:
    page.wait_for_function("title => { const h1 = document.querySelector('h1'); return h1 && h1.innerText !== title; }", arg=title)
    page.wait_for_function(_AT_REST)


def walk(n_pages: int, n_rounds: int, seed: int = 0) -> list[int]:
    """Every page once a round, in another order each, no page twice in a row; it does not begin with the first, which is open."""
    draw = random.Random(seed)
    order = [0]
    for _ in range(n_rounds):
        turn = draw.sample(range(n_pages), n_pages)
        order += turn if turn[0] != order[-1] else turn[::-1]
    return order[1:]


def has_torch(server: psutil.Process) -> bool:
    return any("libtorch" in part.path for part in server.memory_maps())


def _median(work: str, seconds: Sequence[float], bar: float | None = None, *, ratio: float | None = None) -> Figure:
    value = float(np.median(seconds))
    drawn = np.median(np.random.default_rng(0).choice(seconds, size=(2000, len(seconds))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    told = f"under {bar:g}" if bar else ""
    return Figure(work=work, value=value, low=float(low), high=float(high), ratio=ratio, unit="s", bar=told, holds=value < bar if bar else None, n=len(seconds))
