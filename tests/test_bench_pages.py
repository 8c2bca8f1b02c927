"""The benchmark of pages: that it visits every page, and knows a server with torch from one without."""

import subprocess
import sys
from itertools import pairwise

import psutil
import pytest

from backend.bench.pages import has_torch, walk


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
