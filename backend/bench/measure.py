"""What benchmarks share: the line of a table, turns, and the peers in a process of their own.

Each measure is taken in several rounds, ours and the peer's after each other, and the ratio is the median of the rounds'
ratios, so that what else the machine does falls on both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from backend.errors import InputError
from backend.generation.decoder import Decoder, DecoderRow, RowState, decode
from backend.models.machine import describe_machine
from backend.paths import CHECKOUT

Ask = Callable[..., dict[str, Any]]
"""Sends one request to the peers' process and returns its result."""

PEERS_PYTHON = CHECKOUT / ".peers" / "bin" / "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One line of the table."""

    work: str
    ours: float | None
    peer: float | None
    """None where there is nothing to hold it against but the limit."""

    ratio: float | None
    """How many times better ours is; the median over rounds."""

    unit: str
    against: str
    at_least: str
    """The bar, such as "1.3x" or "under 1.3 GB"."""

    holds: bool | None
    """Whether the bar is met; None where it does not apply on this machine."""

    rounds: int = 1
    lowest: float | None = None
    highest: float | None = None
    """Lowest and highest ratio of the rounds."""

    note: str = ""


def compared(work: str, pairs: Sequence[tuple[float, float]], *, unit: str, against: str, bar: str, note: str, less_is_better: bool = False) -> Measure:
    """A measure from what each round gave, ours and the peer's.

    Args:
        bar: Such as "1.3x"; empty where there is none.
    """
    ratios = [(peer / ours if less_is_better else ours / peer) for ours, peer in pairs]
    ratio = statistics.median(ratios)
    return Measure(
        work=work, ours=statistics.median(o for o, _ in pairs), peer=statistics.median(p for _, p in pairs), ratio=ratio, unit=unit, against=against,
        at_least=bar, holds=ratio >= float(bar.rstrip("x")) if bar else None, rounds=len(pairs), lowest=min(ratios), highest=max(ratios), note=note,
    )  # fmt: skip


def timed(decoder: Decoder, rows: Sequence[DecoderRow]) -> tuple[float, list[list[int]]]:
    """Seconds of a batch, and its answers."""
    started = time.perf_counter()
    states = decode(decoder, rows)
    return time.perf_counter() - started, [state.answer_ids for state in states]


def timed_in_step(decoder: Decoder, kinds: Mapping[str, Sequence[DecoderRow]]) -> tuple[dict[str, float], dict[str, list[RowState]]]:
    """Seconds of several batches that take turns step by step, so that what else the machine does falls on all; and their rows."""
    batches = {kind: decoder.open_batch() for kind in kinds}
    states = {kind: [batches[kind].add(row) for row in rows] for kind, rows in kinds.items()}
    seconds = dict.fromkeys(kinds, 0.0)
    while live := [kind for kind in kinds if any(state.finish_reason is None for state in states[kind])]:
        for kind in live:
            started = time.perf_counter()
            batches[kind].step()
            seconds[kind] += time.perf_counter() - started
    return seconds, states


@contextmanager
def peers_process() -> Iterator[Ask]:
    """A function that sends one request to the peers' process (``peers.py``) and returns its result."""
    python = str(PEERS_PYTHON) if PEERS_PYTHON.exists() else sys.executable
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [python, str(Path(__file__).with_name("peers.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"},
        ) as process,
    ):  # fmt: skip
        requests, results = cast(IO[str], process.stdin), cast(IO[str], process.stdout)

        def ask(**request: Any) -> dict[str, Any]:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            for line in results:
                if line.startswith("RESULT "):
                    return json.loads(line.removeprefix("RESULT "))
            errors.seek(0)
            last = " ".join(errors.read().strip().splitlines()[-1:])
            raise InputError(f"The peers cannot be measured: {last[:300]} Run: make peers")

        try:
            yield ask
        finally:
            requests.close()


def as_json(measures: Sequence[Measure]) -> dict[str, Any]:
    """What ``--json`` prints and the store keeps."""
    return {"rows": [asdict(m) for m in measures], "machine": describe_machine() | {"load_after": psutil.getloadavg()}}
