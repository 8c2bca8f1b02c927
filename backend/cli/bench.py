"""``python -m backend bench``: figures of this machine, kept under ``cached_results/bench/``.

``generate``: the engine beside the field's own tools, in one run. ``judging``: the offline judge, and a store of 100,000 answers. ``capture``: latents of a
text beside sae-lens. ``steer``: steered answers beside nnsight. ``realign``: a re-alignment with its evaluations beside transformers and peft. ``pages``: the
dashboard in a browser, on stored results.
"""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from backend.cli.output import ProgressLine, print_json, print_table, say
from backend.paths import CACHED_RESULTS, told_disk_faults, write_text

if TYPE_CHECKING:
    from backend.bench.measure import Measure

Table = tuple[dict[str, Any], list[dict[str, str]]]
"""What is measured so far: for JSON, and as rows for readers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=list(_WORKS),
        help="answers, training and memory against transformers and peft; or judge, store and pages; or latents against sae-lens; or steering against nnsight; or a re-alignment; or pages in a browser",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=64, help="tokens a row (generate, capture, steer, realign)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measure; ours and a peer's in turns")
    parser.add_argument("--save", action="store_true", help="keep table and JSON under cached_results/bench")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    folder = CACHED_RESULTS / "bench"
    for result, rows in _WORKS[options.what](options):
        if options.save:
            with told_disk_faults("keeping the benchmark"):
                write_text(folder / f"{options.what}.json", json.dumps(result, indent=2) + "\n")
                head = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]) + "\n"
                write_text(folder / f"{options.what}.md", head + "".join("| " + " | ".join(row.values()) + " |\n" for row in rows))
    if options.json:
        print_json(result)
    else:
        print_table(rows)
    return 0


def _generate(options: argparse.Namespace) -> Iterator[Table]:
    from backend.bench.generate import Bench

    yield _measured(Bench(options.tokens, options.rounds, say).run())


def _capture(options: argparse.Namespace) -> Iterator[Table]:
    from backend.bench.capture import CaptureBench

    yield _measured(CaptureBench(options.tokens, options.rounds, say).run())


def _steer(options: argparse.Namespace) -> Iterator[Table]:
    from backend.bench.steer import SteerBench

    yield _measured(SteerBench(options.tokens, options.rounds, say).run())


def _realign(options: argparse.Namespace) -> Iterator[Table]:
    from backend.bench.realign import RealignBench

    yield _measured(RealignBench(options.tokens, options.rounds, say).run())


def _judging(options: argparse.Namespace) -> Iterator[Table]:
    from backend.bench import judging

    result = judging.as_json(judging.JudgingBench(options.rounds, say).run())
    rows = [
        {
            "Work": row["work"], "Measured": f"{row['value']:.3g} {row['unit']}", "Bar": row["bar"], "Holds": ("yes" if row["holds"] else "no") if row["bar"] else "",
            "Rounds": str(row["rounds"]),
        }
        for row in result["rows"]
    ]  # fmt: skip
    yield result, rows


def _pages(options: argparse.Namespace) -> Iterator[Table]:
    """With each figure, since all of them take a quarter of an hour."""
    from backend.bench import pages

    figures, line = [], ProgressLine()
    for figure in pages.PagesBench(options.rounds, line.show).run():
        figures.append(figure)
        result = pages.as_json(figures)
        rows = [
            {
                "Work": row["work"], "Measured": f"{row['value']:.3g} {row['unit']}", "95 %": "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}",
                "Ratio to Streamlit's own": "" if row["ratio"] is None else f"{row['ratio']:.2f}x", "Bar": row["bar"], "Holds": {True: "yes", False: "no", None: ""}[row["holds"]],
                "n": str(row["n"]),
            }
            for row in result["rows"]
        ]  # fmt: skip
        yield result, rows
    line.end()


def _measured(measures: "list[Measure]") -> Table:
    from backend.bench.measure import as_json

    result = as_json(measures)
    return result, [_line(row) for row in result["rows"]]


def _line(row: dict) -> dict[str, str]:
    spread = "" if row["lowest"] is None else f" ({row['lowest']:.2f}-{row['highest']:.2f}, {row['rounds']} rounds)"
    return {
        "Work": row["work"],
        "Against": row["against"],
        "Ratio": "" if row["ratio"] is None else f"{row['ratio']:.2f}x{spread}",
        "At least": row["at_least"],
        "Holds": {True: "yes", False: "no", None: ""}[row["holds"]],
        "Ours": "" if row["ours"] is None else f"{row['ours']:.3g} {row['unit']}",
        "Peer": "" if row["peer"] is None else f"{row['peer']:.3g} {row['unit']}",
        "Note": row["note"],
    }


_WORKS = {"generate": _generate, "judging": _judging, "capture": _capture, "steer": _steer, "realign": _realign, "pages": _pages}
