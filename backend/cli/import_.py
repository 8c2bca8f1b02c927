"""``python -m backend import``: judged rollouts, step summaries and Inspect logs of others into the store."""

import argparse
from dataclasses import asdict
from pathlib import Path

from backend.cli.output import format_share, print_json, print_table, say
from backend.errors import InputError
from backend.studies import imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=["rollouts", "steps", "inspect"], help="judged answers (CSV), a summary of training steps (CSV), or Inspect logs (.eval)"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--home", type=Path, help="the data folder; PERSONASCOPE_HOME by default")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    stems = [path.stem for path in options.files]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise InputError(f"Two of these files are named {twice}; a run has the name of its file. Rename one, or import them into different folders.")
    if options.what == "steps":
        return _steps(options)
    done = []
    for path in options.files:
        if options.what == "inspect":
            from backend.studies.inspect_logs import import_log

            about = import_log(path, options.home)
        else:
            about = imports.import_rollouts(path, options.home)
        done.append(about)
        say(f"{about.name}: {about.n} answers." + _remarks(about))
        for fault in about.faults[:20]:
            say(f"  left out, {fault}")
        if about.n_faults > 20:
            say(f"  and {about.n_faults - 20} more; all are in the run's manifest")
    if options.json:
        print_json([asdict(about) for about in done])
    return 0


def _remarks(about: imports.Imported) -> str:
    return (f" {about.n_repeated} repeat an earlier question and answer and are kept." if about.n_repeated else "") + (
        f" {about.n_unread_scores} scores could not be read; their rows are not scored." if about.n_unread_scores else ""
    )


def _steps(options: argparse.Namespace) -> int:
    done = [imports.import_steps(path, options.home) for path in options.files]
    if options.json:
        print_json([{"name": name, "steps": rows} for name, rows in done])
        return 0
    for name, rows in done:
        print(name)
        print_table(
            [
                {
                    "step": f"{r['step']:g}", "n": r["n"], "EM": format_share(r["em_rate"]), "95 %": f"{format_share(r['em_low'])} - {format_share(r['em_high'])}",
                    "coherent": format_share(r["coherent_rate"]),
                }
                for r in rows
            ]
        )  # fmt: skip
    return 0
