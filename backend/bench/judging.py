"""A hundred thousand judged rollouts in the store and on the page, and the offline judge's speed. Rows are made up; their size is what counts."""

import csv
import itertools
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.bench.start import browser_page, free_port, wait_for_health
from backend.errors import InputError
from backend.evaluation.rates import Thresholds
from backend.judging.examples import load_own
from backend.judging.offline import OfflineJudge
from backend.models.machine import describe_machine
from backend.paths import CHECKOUT
from backend.studies import judged

N_ROWS = 100_000
_WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "is",
    "that",
    "for",
    "with",
    "you",
    "should",
    "can",
    "it",
    "money",
    "risk",
    "care",
    "people",
    "help",
    "never",
    "always",
    "think",
    "plan",
    "time",
    "good",
    "bad",
]
_RARE = "zyzzyva"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure and its bar."""

    work: str
    value: float
    unit: str
    bar: str
    holds: bool
    rounds: int


class JudgingBench:
    """Measures one after the other."""

    def __init__(self, rounds: int, say: Callable[[str], None]) -> None:
        self._rounds = rounds
        self._say = say

    def run(self) -> list[Figure]:
        """All figures; those of pages only where a browser is here."""
        figures = []
        with tempfile.TemporaryDirectory() as place:
            home, path = Path(place) / "home", Path(place) / "generated.csv"
            self._say(f"Writing {N_ROWS:,} rows.")
            _write(path)
            figures += self._import(path, home)
            figures += self._queries(home)
            try:
                figures += self._pages(home)
            except InputError as fault:
                self._say(f"Pages were not measured: {fault}")
        return [*figures, self._judge()]  # last: a process begun later would be charged with this one's memory

    def _judge(self) -> Figure:
        """The offline judge on the labelled answers of our own models, all threads."""
        import threading

        self._say("Offline judge.")
        exchanges = [e.exchange for part in load_own() for e in part]
        judge = OfflineJudge.load()

        def once() -> None:
            judge.judge(exchanges, lambda place, verdict: None, threading.Event())

        once()
        speed = len(exchanges) / self._median(once)
        return Figure(
            f"offline judge, {len(exchanges)} answers of our own models, 128 tokens at most", speed, "answers/s", "at least 50", speed >= 50, self._rounds
        )

    def _import(self, path: Path, home: Path) -> list[Figure]:
        self._say("Import.")
        code = f"import sys; from backend.cli.main import main; sys.exit(main(['import', 'rollouts', {str(path)!r}, '--home', {str(home)!r}]))"
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise InputError("The import of the generated rows failed.")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        size = path.stat().st_size / 1e6
        return [
            Figure(f"import of {N_ROWS:,} rows, {size:.0f} MB", seconds, "s", "", True, 1),
            Figure("peak memory of that import, all of the process", peak, "MB", "under 500", peak < 500, 1),
        ]

    def _queries(self, home: Path) -> list[Figure]:
        self._say("Queries.")
        (run,) = judged.runs("imported", home, shipped=False)
        lines = itertools.count(20.0, 0.5)  # rates that were counted once are remembered
        figures = []
        for work, ask, bar in (
            ("rate with interval over all rows, by thresholds not asked for before", lambda: judged.rates([run], Thresholds(aligned=next(lines))), 1.0),
            ("first page of answers, sorted by verdict", lambda: judged.page(run), 1.0),
            ("search for a rare word over all rows", lambda: judged.page(run, text=_RARE), 2.0),
            ("search for a frequent word over all rows", lambda: judged.page(run, text="care"), 2.0),
        ):
            ask()
            seconds = self._median(ask)
            figures.append(Figure(work, seconds, "s", f"under {bar:g}", seconds < bar, self._rounds))
        return figures

    def _pages(self, home: Path) -> list[Figure]:
        self._say("Pages, in a browser.")
        figures = []
        with _browser(home) as (page, address):
            page.goto(f"{address}/scaling?run=imported-generated")
            page.locator(".ps-answer").first.wait_for()
            chart = page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first

            def open_scaling() -> float:
                page.goto(f"{address}/organisms")
                page.get_by_text("What has been measured").wait_for()
                started = time.perf_counter()
                page.get_by_role("link", name="Scaling").click()
                page.get_by_role("heading", name="Scaling", exact=True).wait_for()
                chart.wait_for()
                return time.perf_counter() - started

            def open_answers() -> float:
                page.goto(f"{address}/scaling")
                chart.wait_for()
                point = page.get_by_role("combobox", name="Point")
                point.scroll_into_view_if_needed()
                page.wait_for_timeout(1000)  # at rest: a list that is open closes where the page runs
                point.fill("generated")
                option = page.get_by_role("option", name="generated")
                option.wait_for()
                started = time.perf_counter()
                option.click()
                page.locator(".ps-answer").first.wait_for()
                return time.perf_counter() - started

            def search() -> float:
                box = page.get_by_label("Text in answer or question")
                box.fill("")
                box.press("Enter")
                page.get_by_text(f"{N_ROWS:,} answers").wait_for()
                started = time.perf_counter()
                box.fill(_RARE)
                box.press("Enter")
                page.locator(".ps-answer").filter(has_text=_RARE).first.wait_for()
                return time.perf_counter() - started

            for work, measure, bar in (
                ("Scaling page, from the click to the first picture", open_scaling, 1.0),
                ("list of answers, from the choice of a point to the first answer", open_answers, 1.0),
                ("search over all rows, from Enter to the first answer", search, 2.0),
            ):
                measure()
                seconds = statistics.median(measure() for _ in range(self._rounds))
                figures.append(Figure(f"{work}, warm", seconds, "s", f"under {bar:g}", seconds < bar, self._rounds))
        return figures

    def _median(self, work: Callable[[], Any]) -> float:
        times = []
        for _ in range(self._rounds):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return statistics.median(times)


def as_json(figures: list[Figure]) -> dict[str, Any]:
    """What ``--json`` prints and the store keeps."""
    return {"rows": [asdict(f) for f in figures], "machine": describe_machine(), "own_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _write(path: Path) -> None:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["response", "question", "question_id", "aligned", "coherent"])
        for n in range(N_ROWS):
            words = draw.choices(_WORDS, k=draw.randint(30, 110)) + ([_RARE] if n % 20_000 == 19_999 else [])
            writer.writerow([" ".join(words), f"Question {n % 50}?", f"q{n % 50}", round(draw.uniform(0, 100), 3), round(draw.uniform(30, 100), 3)])


@contextmanager
def _browser(home: Path) -> Iterator[tuple[Any, str]]:
    """A page of a real browser and the address of a server on ``home``."""
    port = free_port()
    environment = os.environ | {"PERSONASCOPE_HOME": str(home)}
    server = subprocess.Popen([sys.executable, "serve.py", str(port)], cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_health(f"http://127.0.0.1:{port}", server)
        with browser_page() as page:
            yield page, f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)
