"""The benchmark of pages: that it visits every page, and knows a server with torch from one without."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from backend.bench.pages import Figure, PagesBench, has_torch, walk
from backend.cli import bench
from backend.cli.main import main


@pytest.mark.parametrize("n_pages", [2, 3, 12])
def test_every_round_visits_every_page_and_never_clicks_on_the_open_one(n_pages: int):
    order = walk(n_pages, 9)
    assert [sorted(order[start : start + n_pages]) for start in range(0, len(order), n_pages)] == [list(range(n_pages))] * 9
    assert all(a != b for a, b in pairwise([0, *order]))


@pytest.mark.parametrize(("imports", "expected"), [("json", False), ("torch", True)])
def test_a_process_with_torch_is_known(imports: str, expected: bool):
    with subprocess.Popen(
        [sys.executable, "-c", f"import {imports}; print('ready', flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        assert has_torch(psutil.Process(process.pid)) is expected
        process.stdin.close()


def test_what_is_measured_is_kept_when_a_later_part_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(_):
        yield Figure(work="import", value=0.5, unit="s", bar="under 2", holds=True, n=5)
        yield Figure(work="cold", value=2.0, unit="s", bar="under 1.5", holds=False, n=5)
        raise KeyboardInterrupt

    monkeypatch.setattr(PagesBench, "run", run)
    monkeypatch.setattr(bench, "CACHED_RESULTS", tmp_path)
    assert main(["bench", "pages", "--save"]) == 130
    assert [row["work"] for row in json.loads((tmp_path / "bench" / "pages.json").read_text())["rows"]] == ["import", "cold"]
    assert (tmp_path / "bench" / "pages.md").read_text().count("\n") == 4
